package vmtests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// elfModule returns a minimal ELF object whose .modinfo holds the entries.
func elfModule(entries ...string) []byte {
	info := strings.Join(entries, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	header := []any{
		uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), uint64(64 + len(info) + len(names)),
		uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2),
	}
	section := func(name, kind uint32, offset, size int) []any {
		return []any{name, kind, uint64(0), uint64(0), uint64(offset), uint64(size), uint32(0), uint32(0), uint64(1), uint64(0)}
	}
	write := func(values []any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v)
		}
	}
	write(header)
	b.WriteString(info + names)
	write(section(0, 0, 0, 0))
	write(section(1, 1, 64, len(info)))
	write(section(10, 3, 64+len(info), len(names)))
	return b.Bytes()
}

func testTree(modules map[string][]byte, builtin ...string) *moduleTree {
	tree := &moduleTree{files: map[string]string{}, builtin: map[string]bool{}}
	for name := range modules {
		tree.files[name] = name
	}
	for _, name := range builtin {
		tree.builtin[name] = true
	}
	tree.read = func(path string) ([]byte, error) {
		if data, ok := modules[path]; ok {
			return data, nil
		}
		return nil, fmt.Errorf("no file %s", path)
	}
	return tree
}

func TestModuleOrder(t *testing.T) {
	modules := map[string][]byte{
		"virtio":         elfModule("name=virtio", "depends="),
		"virtio_ring":    elfModule("depends=virtio"),
		"virtio_pci":     elfModule("license=GPL", "depends=virtio,virtio_ring,virtio-modern"),
		"virtio_modern":  elfModule("depends="),
		"virtio_blk":     elfModule("depends=virtio_ring,virtio,scsi_mod"),
		"zram":           elfModule("depends=", "softdep=pre: lz4 gone post: later"),
		"lz4":            elfModule("depends="),
		"later":          elfModule("depends="),
		"one":            elfModule("depends=two"),
		"two":            elfModule("depends=one"),
		"needs_the_gone": elfModule("depends=gone"),
		"text":           []byte("not an object"),
	}
	tree := testTree(modules, "scsi_mod")
	for _, tc := range []struct {
		name   string
		wanted []string
		want   string
		err    string
	}{
		{"dependencies first, each once", []string{"virtio_blk", "virtio_pci"}, "virtio virtio_ring virtio_blk virtio_modern virtio_pci", ""},
		{"spelled with hyphens", []string{"virtio-ring"}, "virtio virtio_ring", ""},
		{"soft dependencies where they exist", []string{"zram"}, "lz4 zram", ""},
		{"built in", []string{"scsi_mod"}, "", ""},
		{"unknown", []string{"nvme"}, "", "module nvme: this kernel has no such module"},
		{"missing dependency", []string{"needs_the_gone"}, "", "module needs_the_gone needs module gone"},
		{"cycle", []string{"one"}, "", "depends on itself"},
		{"no module", []string{"text"}, "", "not a module"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tree.load(tc.wanted...)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			var names []string
			for _, m := range got {
				names = append(names, m.Name)
			}
			if err != nil || !slices.Equal(names, strings.Fields(tc.want)) {
				t.Errorf("order %q, %v; want %q", names, err, tc.want)
			}
		})
	}
}

// With a kernel in the cache, its own modules can be read.
func TestModulesOfCachedKernel(t *testing.T) {
	cache, err := OpenCache(arches[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range suites {
		t.Run(suite.Suite, func(t *testing.T) {
			kernel, err := cache.Load(suite)
			if err != nil {
				t.Skip(err)
			}
			tree, err := openModules(t.Context(), kernel.Modules)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tree.load("zram", "virtio_blk")
			if err != nil || len(got) < 2 {
				t.Fatalf("%d modules, %v", len(got), err)
			}
			t.Logf("%d modules, the last %s", len(got), got[len(got)-1].Name)
		})
	}
}
