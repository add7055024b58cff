package vmtests

import (
	"debug/elf"
	"fmt"
	"os"
	"runtime"
)

// Arch is what differs between machine architectures.
type Arch struct {
	Name    string // as Go and Debian call it
	QEMU    string // the emulator's command
	Machine string
	CPU     string
	Console string // the serial console's device
	machine elf.Machine
}

// The kernel copies with single bytes where a processor is said to be fast at that
// (ERMS), and an emulated one is not: with the processor that has everything the
// same tests take a fifth longer.
//
// The architected pointer authentication of arm64 takes half of an emulated
// processor's time; an implementation's own is as good for a test.
var arches = []Arch{
	{"amd64", "qemu-system-x86_64", "pc", "qemu64", "ttyS0", elf.EM_X86_64},
	{"arm64", "qemu-system-aarch64", "virt", "max,pauth-impdef=on", "ttyAMA0", elf.EM_AARCH64},
}

// SelectedArch is the architecture that VMTEST_ARCH names, by default the
// machine's own.
func SelectedArch() (Arch, error) {
	name := os.Getenv("VMTEST_ARCH")
	if name == "" {
		name = runtime.GOARCH
	}
	for _, a := range arches {
		if a.Name == name {
			return a, nil
		}
	}
	return Arch{}, fmt.Errorf("no VM settings for architecture %q (VMTEST_ARCH)", name)
}
