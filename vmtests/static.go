package vmtests

import "debug/elf"

// staticBinary reports whether path is an executable for arch that needs no
// dynamic loader: the initramfs has none.
func staticBinary(path string, arch Arch) (bool, error) {
	file, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	if file.Machine != arch.machine {
		return false, nil
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}
