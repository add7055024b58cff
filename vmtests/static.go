package vmtests

import "debug/elf"

// staticBinary reports whether path is an executable that needs no dynamic
// loader: the initramfs has none.
func staticBinary(path string) (bool, error) {
	file, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}
