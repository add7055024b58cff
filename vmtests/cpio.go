package vmtests

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// cpioWriter writes an archive in the "newc" format, the one that the kernel
// unpacks as an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
// Files are owned by root and dated 0, so that the same content gives the same
// bytes.
type cpioWriter struct {
	w     io.Writer
	inode int
	made  map[string]bool // directories already written
	err   error
}

func newCPIOWriter(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, made: map[string]bool{}}
}

// Unix file type bits, as the archive stores them.
const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioSymlink = 0o120000
)

// directory adds a directory and its parents, each once.
func (c *cpioWriter) directory(name string) {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" || c.made[name] {
		return
	}
	c.directory(path.Dir("/" + name))
	c.made[name] = true
	c.entry(name, cpioDir|0o755, nil)
}

// file adds a regular file, and its parent directories.
func (c *cpioWriter) file(name string, mode fs.FileMode, data []byte) {
	c.directory(path.Dir(path.Clean("/" + name)))
	c.entry(name, cpioRegular|uint32(mode.Perm()), data)
}

// symlink adds a symbolic link, and its parent directories.
func (c *cpioWriter) symlink(name, target string) {
	c.directory(path.Dir(path.Clean("/" + name)))
	c.entry(name, cpioSymlink|0o777, []byte(target))
}

// close ends the archive and returns the first error of all. Archives may be
// concatenated: the kernel unpacks one after the other.
func (c *cpioWriter) close() error {
	c.inode = -1 // the trailer has inode 0
	c.entry("TRAILER!!!", 0, nil)
	return c.err
}

func (c *cpioWriter) entry(name string, mode uint32, data []byte) {
	if c.err != nil {
		return
	}
	c.inode++
	links := 1
	if mode&cpioDir != 0 && mode&cpioRegular == 0 {
		links = 2
	}
	name = strings.TrimPrefix(name, "/")
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.write(header + name + "\x00" + padding(len(header)+len(name)+1))
	c.write(string(data) + padding(len(data)))
}

func (c *cpioWriter) write(s string) {
	if c.err != nil || s == "" {
		return
	}
	if _, err := io.WriteString(c.w, s); err != nil {
		c.err = fmt.Errorf("write initramfs: %w", err)
	}
}

// padding fills up to the format's alignment of four bytes.
func padding(n int) string { return strings.Repeat("\x00", -n&3) }
