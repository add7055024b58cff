package vmtests

import (
	"fmt"
	"os"
	"runtime"
)

// Arch is what differs between machine architectures.
type Arch struct {
	Name    string // as Go and Debian call it
	QEMU    string // the emulator's command
	Machine string
	Console string // the serial console's device
}

var arches = []Arch{
	{"amd64", "qemu-system-x86_64", "pc", "ttyS0"},
	{"arm64", "qemu-system-aarch64", "virt", "ttyAMA0"},
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
