package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

// applets are the busybox commands that the guests have, each as a link.
var applets = strings.Fields(`ash awk cat chmod cp cut dd dmesg echo env expr false
	free grep head hostname id ip kill killall ln losetup ls mkdir mkfifo mkswap mknod
	mount mv nice pgrep pidof pkill ps pwd readlink renice rm rmdir sed seq setsid sh
	sleep sort stat swapoff swapon sync sysctl tail taskset test timeout touch tr true
	umount uname unshare usleep wc xargs yes`)

// accounts are those of a small system: tests look names up, and run things
// as somebody who is not root.
var accounts = map[string]string{
	"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"/etc/group":  "root:x:0:\nnogroup:x:65534:\n",
	"/etc/hosts":  "127.0.0.1 localhost vmtest\n",
}

// writeBase writes the initramfs that every kernel shares. It is not
// compressed: QEMU copies it into the guest faster than an emulated processor
// unpacks it.
func writeBase(w io.Writer, p *payload, busybox string) error {
	archive := newCPIOWriter(w)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/var", "/sbin", "/usr/bin"} {
		archive.directory(dir)
	}
	for _, program := range p.manifest.Programs {
		archive.directory(program.Dir)
	}
	files := map[string]string{"/init": p.guest, "/bin/busybox": busybox}
	maps.Copy(files, p.files)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data, err := os.ReadFile(files[name])
		if err != nil {
			return fmt.Errorf("write initramfs: %w", err)
		}
		archive.file(name, 0o755, data)
	}
	for _, applet := range applets {
		archive.symlink("/bin/"+applet, "busybox")
	}
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		archive.file(name, 0o644, []byte(accounts[name]))
	}
	manifest, err := json.Marshal(p.manifest)
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	archive.file(protocol.ManifestPath, 0o644, manifest)
	return archive.close()
}

// moduleArchive returns an archive to append to the base: one kernel's
// modules and their loading order.
func moduleArchive(modules []Module) ([]byte, error) {
	var b, order bytes.Buffer
	archive := newCPIOWriter(&b)
	for _, m := range modules {
		name := "/lib/modules/" + m.Name + ".ko"
		archive.file(name, 0o644, m.Data)
		fmt.Fprintln(&order, name)
	}
	archive.file(protocol.ModulesPath, 0o644, order.Bytes())
	if err := archive.close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
