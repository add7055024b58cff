package cgroup2

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func TestIDsAreThoseOfTheSubtree(t *testing.T) {
	mount := t.TempDir()
	inode := func(path string) uint64 {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(mount, path), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	if err := os.MkdirAll(filepath.Join(mount, "mail.slice/smtp/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(mount, "mail.slice2"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mount, "mail.slice/cgroup.procs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := []uint64{inode("mail.slice"), inode("mail.slice/smtp"), inode("mail.slice/smtp/deep")}
	slices.Sort(want)
	for _, path := range []string{"/mail.slice", "mail.slice", "/mail.slice/", mount + "/mail.slice", "/x/../mail.slice", "../mail.slice"} {
		got, err := idsBelow(mount, path)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, error %v, want %v", path, got, err, want)
		}
	}
	for _, path := range []string{"/nope", "/tmp/../nope", filepath.Dir(mount), "/mail.slice/cgroup.procs", "/", ".", "..", mount, "/mail.slice/.."} {
		if got, err := idsBelow(mount, path); err == nil {
			t.Errorf("%q: %v, want an error", path, got)
		}
	}
}

func TestFindMount(t *testing.T) {
	const v1 = "30 24 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
	tests := []struct{ mountinfo, want string }{
		{v1 + "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		{v1 + "31 24 0:27 / /mnt/my\\040cgroups rw - cgroup2 none rw\n", "/mnt/my cgroups"},
		{v1, ""},
	}
	for _, tt := range tests {
		got, err := findMount(tt.mountinfo)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: mount %q, error %v, want %q", tt.mountinfo, got, err, tt.want)
		}
	}
}
