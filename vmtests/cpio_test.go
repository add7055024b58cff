package vmtests

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sampleArchive holds every kind of entry, and data of every length modulo
// the alignment.
func sampleArchive(t *testing.T) (archive []byte, files map[string]string) {
	t.Helper()
	files = map[string]string{
		"init": "#!/bin/sh\n", "empty": "", "deep/er/one": "1", "deep/two": "22", "deep/er/three": "333",
		"a-name-of-quite-some-length.txt": "4444",
	}
	var b bytes.Buffer
	w := newCPIOWriter(&b)
	for name, data := range files {
		w.file("/"+name, 0o755, []byte(data))
	}
	w.directory("/proc")
	w.directory("/deep/er")
	w.symlink("/bin/sh", "../init")
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), files
}

// unpackArchive extracts an archive with a reader that this package did not
// write.
func unpackArchive(t *testing.T, archive []byte) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox, which reads the archive back, is not installed (make setup)")
	}
	dir := t.TempDir()
	cmd := exec.Command(busybox, "cpio", "-i", "-d", "-m")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("busybox cpio: %v: %s", err, out)
	}
	return dir
}

func TestArchiveReadsBack(t *testing.T) {
	archive, files := sampleArchive(t)
	dir := unpackArchive(t, archive)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: mode %v, %v; want 0755", name, info.Mode(), err)
		}
	}
	if target, err := os.Readlink(filepath.Join(dir, "bin/sh")); err != nil || target != "../init" {
		t.Errorf("bin/sh leads to %q, %v", target, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "proc")); err != nil || !info.IsDir() {
		t.Errorf("proc: %v, %v", info, err)
	}
}

// The kernel wants every header on a multiple of four bytes, and a directory
// before what is in it.
func TestArchiveLayout(t *testing.T) {
	archive, _ := sampleArchive(t)
	if len(archive)%4 != 0 {
		t.Errorf("%d bytes: an archive cannot be appended to it", len(archive))
	}
	for at := bytes.Index(archive, []byte("070701")); at >= 0; {
		if at%4 != 0 {
			t.Fatalf("a header is at %d", at)
		}
		next := bytes.Index(archive[at+6:], []byte("070701"))
		if next < 0 {
			break
		}
		at += 6 + next
	}
	if dir, file := bytes.Index(archive, []byte("deep/er\x00")), bytes.Index(archive, []byte("deep/er/one\x00")); dir > file {
		t.Errorf("deep/er comes at %d, after deep/er/one at %d", dir, file)
	}
	if n := strings.Count(string(archive), "deep/er\x00"); n != 1 {
		t.Errorf("deep/er is there %d times", n)
	}
}

type brokenWriter struct{ left int }

func (w *brokenWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, os.ErrClosed
	}
	return len(b), nil
}

func TestArchiveReportsWriteError(t *testing.T) {
	w := newCPIOWriter(&brokenWriter{left: 200})
	w.file("/a", 0o644, make([]byte, 300))
	w.file("/b", 0o644, nil)
	if err := w.close(); err == nil {
		t.Error("a full disk went unnoticed")
	}
}
