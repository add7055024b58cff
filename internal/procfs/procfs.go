// Package procfs tells whose processes /proc shows, and whose clocks the caller reads.
package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// CheckOwn returns an error unless /proc numbers processes as the caller's pid
// namespace does. After unshare(1) without --mount-proc it shows those of another
// one: the same number is somebody else there.
func CheckOwn() error { return check(os.Readlink, os.Getpid()) }

// initialTimeNamespace is the one that every machine starts with (PROC_TIME_INIT_INO).
const initialTimeNamespace = "time:[4026531834]"

// CheckClocks returns an error in a time namespace (Linux 5.6) that is not the
// machine's first: there a process reads other clocks than those by which the kernel
// says when processes started, and BPF programs when something happened.
func CheckClocks() error { return checkClocks(os.Readlink) }

func checkClocks(readlink func(string) (string, error)) error {
	ns, err := readlink("/proc/self/ns/time")
	switch {
	case errors.Is(err, fs.ErrNotExist): // CONFIG_TIME_NS is off
		return nil
	case err != nil:
		return fmt.Errorf("which clocks this process reads: %w", err)
	case ns != initialTimeNamespace:
		return fmt.Errorf("this is a time namespace (%s), whose clocks are not those of the kernel: run it outside (nsenter --time=/proc/1/ns/time)", ns)
	}
	return nil
}

func check(readlink func(string) (string, error), pid int) error {
	self, err := readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("no /proc that shows this process (mount one: mount -t proc proc /proc): %w", err)
	}
	if self != strconv.Itoa(pid) {
		return fmt.Errorf("/proc belongs to another pid namespace (it calls this process %s, not %d): "+
			"mount one of this namespace (mount -t proc proc /proc)", self, pid)
	}
	return nil
}
