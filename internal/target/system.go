package target

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// Cmdline reads /proc/PID/cmdline for [Self.Cmdline]: arguments joined by
// spaces, "" for a process that has none or is gone. The kernel copies it out
// of the process's own memory, so a swapped-out process is paged in.
func Cmdline(pid int32) string {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(int(pid)), "cmdline"))
	if err != nil {
		return ""
	}
	raw = bytes.TrimRight(raw, "\x00")
	return string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '}))
}

// LookupUser finds a login name's uid for [Options.LookupUser].
func LookupUser(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, errors.New("no such user in /etc/passwd: of others give the number")
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("uid %q of the user is not a number", u.Uid)
	}
	return uint32(uid), nil
}
