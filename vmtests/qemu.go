package vmtests

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

// arg is one idea of how a guest is to be, as QEMU's arguments and as kernel
// parameters.
type arg struct {
	qemu   []string
	kernel []string
}

// defaultAccel emulates both processors in one thread. With a thread for each,
// one may run code that the other has just patched: attaching to a tracepoint
// then ended in an int3 that nobody had set, in one boot of two. Two guests at a
// time keep two real processors busy all the same.
const defaultAccel = "tcg,thread=single"

// machineOf is the board and its processor. A hypervisor device may exist and
// still hang or crash a guest, so the accelerator is an explicit choice.
func machineOf(a Arch) arg {
	accel := os.Getenv("VMTEST_ACCEL")
	if accel == "" {
		accel = defaultAccel
	}
	return arg{qemu: []string{"-machine", a.Machine, "-accel", accel, "-cpu", a.CPU}}
}

// countInstructions gives the guest a clock that goes on by a nanosecond for each
// instruction, and with the emulating machine's while no processor has anything to
// do. All of its processors share the thousand million of each second.
func countInstructions(e *Emulator) arg {
	if e == nil {
		return arg{}
	}
	a := arg{qemu: []string{"-icount", "shift=0,sleep=on"}}
	for _, dir := range e.Data {
		a.qemu = append(a.qemu, "-L", dir)
	}
	return a
}

// cpus and memory size the guest.
func cpus(n int) arg      { return arg{qemu: []string{"-smp", strconv.Itoa(n)}} }
func memoryMiB(n int) arg { return arg{qemu: []string{"-m", strconv.Itoa(n)}} }

// bare leaves out every device that is not asked for.
func bare() arg {
	return arg{qemu: []string{"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"}}
}

// serial puts the guest's console on QEMU's standard output.
func serial(a Arch) arg {
	return arg{
		qemu:   []string{"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"},
		kernel: []string{"console=" + a.Console, "loglevel=4"},
	}
}

// swapDisk gives the guest a disk whose data need not survive: the emulator's first
// descriptor but the standard ones.
func swapDisk(wanted bool) arg {
	if !wanted {
		return arg{}
	}
	return arg{qemu: []string{"-drive", "file=/proc/self/fd/3,if=none,id=swap,format=raw,cache=unsafe",
		"-device", "virtio-blk-pci,drive=swap"}}
}

// parameters are further kernel parameters.
func parameters(words ...string) arg { return arg{kernel: words} }

// endOnPanic makes a dead guest end instead of rebooting or hanging: after an
// oops nothing that a test says means anything.
func endOnPanic() arg {
	return arg{qemu: []string{"-no-reboot"}, kernel: []string{"panic=-1", "oops=panic"}}
}

// marked tells the tests inside that the machine is theirs alone.
func marked() arg { return arg{kernel: []string{nstest.GuestParameter}} }

// direct boots a kernel and an initramfs without a boot loader.
func direct(image, initramfs, nonce string) arg {
	return arg{
		qemu:   []string{"-kernel", image, "-initrd", initramfs},
		kernel: []string{"rdinit=/init", protocol.NonceParameter + "=" + nonce},
	}
}

// emulated leaves out what only costs time in an emulated machine. Attaching
// and freeing BPF programs waits for RCU grace periods, which take seconds on
// a processor that is emulated and shared; expedited they take a third.
func emulated() arg {
	return arg{kernel: []string{"mitigations=off", "random.trust_cpu=on", "no_timer_check",
		"rcupdate.rcu_expedited=1", "audit=0", "apparmor=0"}}
}

// extra are kernel parameters from VMTEST_APPEND.
func extra() arg { return arg{kernel: strings.Fields(os.Getenv("VMTEST_APPEND"))} }

// arguments joins ideas into QEMU's command line.
func arguments(args ...arg) []string {
	var line, kernel []string
	for _, a := range args {
		line = append(line, a.qemu...)
		kernel = append(kernel, a.kernel...)
	}
	if len(kernel) > 0 {
		line = append(line, "-append", strings.Join(kernel, " "))
	}
	return line
}

// guestMemoryMiB is the size of a guest, from VMTEST_MEMORY_MIB.
func guestMemoryMiB() (int, error) {
	text := os.Getenv("VMTEST_MEMORY_MIB")
	if text == "" {
		return 768, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 256 {
		return 0, fmt.Errorf("VMTEST_MEMORY_MIB=%q: want a number of MiB, 256 at least", text)
	}
	return n, nil
}
