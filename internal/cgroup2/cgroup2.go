// Package cgroup2 finds cgroup v2 directories and their ids.
package cgroup2

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount returns where cgroup v2 is mounted: /sys/fs/cgroup on most machines,
// /sys/fs/cgroup/unified beside version 1 on others.
func Mount() (string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup v2 mount: %w", err)
	}
	return findMount(string(raw))
}

func findMount(mountinfo string) (string, error) {
	for line := range strings.Lines(mountinfo) {
		head, tail, ok := strings.Cut(line, " - ")
		fields := strings.Fields(head)
		if ok && len(fields) > 4 && strings.HasPrefix(tail, "cgroup2 ") {
			return unescapeMount(fields[4]), nil
		}
	}
	return "", errors.New("no cgroup v2 hierarchy is mounted")
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// IDs returns the id of a cgroup v2 directory and of every directory below it.
// The path is a directory, or a cgroup's name as /proc/PID/cgroup prints it
// ("/system.slice/postfix.service"), which is looked up under the mount. The root of
// all cgroups is an error.
func IDs(path string) ([]uint64, error) {
	mount, err := Mount()
	if err != nil {
		return nil, err
	}
	return idsBelow(mount, path)
}

func idsBelow(mount, path string) ([]uint64, error) {
	// Rooted before it is cleaned: a path with ".." must not leave the mount,
	// where inode numbers are no cgroup ids.
	root := filepath.Clean("/" + path)
	if root != mount && !strings.HasPrefix(root, mount+"/") {
		root = filepath.Join(mount, root)
	}
	// "/", but also "." and "/$UNSET".
	if root == mount {
		return nil, fmt.Errorf("%q is the top of all cgroups here, and so every process: name one below it", path)
	}
	switch info, err := os.Stat(root); {
	case err != nil:
		return nil, fmt.Errorf("no such cgroup under %s: %w", mount, err)
	case !info.IsDir():
		return nil, fmt.Errorf("%s is a file: a cgroup is a directory", root)
	}
	var ids []uint64
	err := Walk(root, func(_ string, id uint64) error {
		ids = append(ids, id)
		return nil
	})
	return ids, err
}

// Walk calls f with each directory at or below dir and its id, which is its
// inode number. One that is removed under the walk has no processes and is left out.
func Walk(dir string, f func(path string, id uint64) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		gone := path != dir && errors.Is(err, fs.ErrNotExist)
		if err != nil || !d.IsDir() {
			if gone {
				return nil
			}
			return err
		}
		var st unix.Stat_t
		switch err := unix.Stat(path, &st); {
		case errors.Is(err, fs.ErrNotExist) && path != dir:
			return nil
		case err != nil:
			return fmt.Errorf("stat %s: %w", path, err)
		}
		return f(path, st.Ino)
	})
}
