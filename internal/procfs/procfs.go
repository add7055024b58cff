// Package procfs tells whose processes /proc shows.
package procfs

import (
	"fmt"
	"os"
	"strconv"
)

// CheckOwn returns an error unless /proc numbers processes as the caller's pid
// namespace does. After unshare(1) without --mount-proc it shows those of another
// one: the same number is somebody else there.
func CheckOwn() error { return check(os.Readlink, os.Getpid()) }

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
