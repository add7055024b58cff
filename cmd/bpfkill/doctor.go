package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/cgroup2"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/procfs"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/window"
)

// doctor tries, on itself and on processes of its own, what a kill would use.
type doctor struct {
	report.Doctor
	trials trials
}

// runDoctor is "bpfkill doctor".
func runDoctor(ctx context.Context, o *doctorOptions, stdout, _ io.Writer) error {
	runtime.LockOSThread() // what is tried on the thread is undone on it
	defer runtime.UnlockOSThread()
	kernel, err := loader.Kernel()
	if err != nil {
		return err
	}
	d := &doctor{Doctor: report.Doctor{Kernel: kernel}, trials: newTrials()}
	d.examine(ctx)
	if err := report.WriteDoctor(stdout, &d.Doctor, o.output); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if !d.Works {
		return &exitError{exitFatal, nil}
	}
	return nil
}

// examine asks for everything, the needed first. Whatever needs privileges that
// are not held is not tried.
func (d *doctor) examine(ctx context.Context) {
	d.add(report.Feature{Name: "Linux 5.10, with BTF", Needed: true}, "", loader.CheckKernel())
	d.add(report.Feature{Name: "/proc of this namespace", Needed: true}, "", procfs.CheckOwn())
	d.add(report.Feature{Name: "clocks of the machine", Needed: true}, "", procfs.CheckClocks())
	d.capabilities()
	d.add(report.Feature{Name: "kernel symbols", Needed: true}, "", loader.CheckSymbols())
	d.add(report.Feature{Name: "open files", Needed: true}, "", window.RaiseFileLimit())
	missing := surroundings()
	if missing == nil {
		if missing = loader.Prepare(); missing != nil {
			d.add(report.Feature{Name: "programs can be loaded", Needed: true}, "", missing)
		}
	}
	for _, t := range []struct {
		name, since string
		needed      bool
		try         func(context.Context) (string, error)
	}{
		{"iterators", "5.8", true, d.trials.iterators},
		{"wait-queue walk", "5.8", true, d.trials.walk},
		{"tripwire", "5.10", true, d.trials.tripwire},
		{"loop engine", "5.10", true, d.trials.loop},
		{"batch engine", loader.BatchSince, false, d.trials.batch},
		{"corral", "5.10", false, d.trials.corral},
		{"wakes measured", "5.10", true, d.trials.observed},
		{"swap-ins of the woken", "5.10", false, d.trials.swapIns},
	} {
		detail, err := "", errUntried
		if missing == nil {
			detail, err = t.try(ctx)
		} else if b := loader.HaveBatch(); t.since == loader.BatchSince && errors.Is(b, loader.ErrUnsupported) {
			err = b // BTF says so to everybody
		}
		d.add(report.Feature{Name: t.name, Since: t.since, Needed: t.needed}, detail, err)
	}
	d.trials.close()
	d.systemCalls()
	d.decide()
}

// errUntried says that something was not tried for want of what it builds on.
var errUntried = errors.New("not tried: see above")

// unknown is an error that leaves a question open.
type unknown struct{ error }

// add writes a row. An error is a no only where it says that the kernel has no
// such thing.
func (d *doctor) add(f report.Feature, detail string, err error) {
	f.Answer, f.Detail = report.Yes, detail
	var open unknown
	switch {
	case err == nil:
	case errors.Is(err, errUntried), errors.As(err, &open):
		f.Answer, f.Detail = report.Unknown, err.Error()
	case errors.Is(err, loader.ErrUnsupported), errors.Is(err, unix.ENOSYS):
		f.Answer, f.Detail = report.No, ""
	default:
		// Not the version of the kernel: something here forbids it.
		f.Answer, f.Since, f.Detail = report.No, "", err.Error()
	}
	d.Features = append(d.Features, f)
}

func (d *doctor) capabilities() {
	all, err := loader.Capabilities()
	if err != nil {
		d.add(report.Feature{Name: "capabilities", Needed: true}, "", err)
	}
	for _, c := range all {
		f := report.Feature{Name: c.Name, Needed: c.Needed, Answer: report.No, Detail: c.Use}
		if c.Held {
			f.Answer = report.Yes
		}
		d.Features = append(d.Features, f)
	}
	lacks := func(c loader.Capability) bool { return c.Needed && !c.Held }
	if err := loader.CheckCapabilities(); err != nil && !slices.ContainsFunc(all, lacks) {
		d.add(report.Feature{Name: "capabilities that count", Needed: true}, "", err)
	}
}

// systemCalls need no BPF.
func (d *doctor) systemCalls() {
	d.add(report.Feature{Name: "SCHED_FIFO"}, "for the length of the window", tryFIFO())
	d.add(report.Feature{Name: "locked memory"}, "", tryLockedMemory())
	d.add(report.Feature{Name: "process_mrelease", Since: "5.15"}, "memory of the killed is freed before they run", tryMrelease())
	d.add(report.Feature{Name: "pidfd_getfd", Since: "5.6"}, "", tryPidfdGetfd())
	detail, err := tryCgroupKill()
	d.add(report.Feature{Name: "cgroup.kill", Since: loader.CgroupKillSince}, detail, err)
}

func tryFIFO() error {
	old, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return err
	}
	fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if err := unix.SchedSetAttr(0, &fifo, 0); err != nil {
		return err
	}
	old.Flags = 0
	return unix.SchedSetAttr(0, old, 0)
}

func tryLockedMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_ONFAULT); err != nil {
		return err
	}
	return unix.Munlockall()
}

// tryMrelease calls it with a descriptor that there is not.
func tryMrelease() error {
	_, _, errno := unix.Syscall(unix.SYS_PROCESS_MRELEASE, ^uintptr(0), 0, 0)
	if errno == unix.EBADF {
		return nil
	}
	return errno
}

// tryPidfdGetfd takes a descriptor of its own process.
func tryPidfdGetfd() error {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(self)
	fd, err := unix.PidfdGetfd(self, self, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// tryCgroupKill looks for the file in any cgroup: the root has none.
func tryCgroupKill() (string, error) {
	mount, err := cgroup2.Mount()
	if err != nil {
		return "", unknown{err}
	}
	children, err := filepath.Glob(filepath.Join(mount, "*", "cgroup.procs"))
	if err != nil || len(children) == 0 {
		return "", unknown{fmt.Errorf("no cgroup below %s", mount)}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(children[0]), "cgroup.kill")); err != nil {
		return "", fmt.Errorf("cgroup.kill: %w", loader.ErrUnsupported)
	}
	return "under " + mount, nil
}

// decide draws the conclusion, as --engine auto does.
func (d *doctor) decide() {
	d.Works = true
	batch := false
	for _, f := range d.Features {
		if f.Needed && f.Answer != report.Yes {
			d.Works = false
		}
		batch = batch || f.Name == "batch engine" && f.Answer == report.Yes
	}
	switch {
	case d.Works && batch:
		d.Engine = engineBatch
	case d.Works:
		d.Engine = engineLoop
	}
}
