package vmtests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSelect(t *testing.T) {
	image := filepath.Join(t.TempDir(), "bzImage")
	if err := os.WriteFile(image, []byte("kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ spec, want, err string }{
		{"", "bullseye bookworm trixie sid", ""},
		{"bookworm", "bookworm", ""},
		{"5.10, sid", "bullseye sid", ""},
		{"6.12.117+deb13-cloud-amd64", "trixie", ""},
		{"6.1.0-50", "bookworm", ""},
		{"7.2", "sid", ""},
		{image + ",6.1", image + " bookworm", ""},
		{"6.11", "", `"6.11"`},
		{"/nowhere/bzImage", "", "/nowhere/bzImage"},
		{",", "", "no kernel"},
	} {
		t.Run(tc.spec, func(t *testing.T) {
			got, err := Select(tc.spec)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			var names []string
			for _, k := range got {
				names = append(names, k.Suite+k.Image)
			}
			if s := strings.Join(names, " "); err != nil || s != tc.want {
				t.Errorf("Select = %q, %v; want %q", s, err, tc.want)
			}
		})
	}
}

func TestColdCacheSaysWhatToDo(t *testing.T) {
	t.Setenv("VMTEST_CACHE", t.TempDir())
	cache, err := OpenCache(arches[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = cache.Load(Kernel{Suite: "sid"})
	if !errors.Is(err, ErrNotCached) || !strings.Contains(err.Error(), "go run ./vmtests/kernels") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v, want one line with the remedy", err)
	}
}

func TestCacheKeepsAndLoads(t *testing.T) {
	for _, layout := range []struct{ name, image, modules string }{
		{"image under boot", "boot/vmlinuz-6.1.0-9-cloud", "lib/modules/6.1.0-9-cloud"},
		{"image beside the modules", "usr/lib/modules/7.2.1/vmlinuz", "usr/lib/modules/7.2.1"},
	} {
		t.Run(layout.name, func(t *testing.T) {
			dir := t.TempDir()
			cache := &Cache{Dir: filepath.Join(dir, "old")}
			root := filepath.Join(cache.Dir, "unpacked")
			for _, sub := range []string{filepath.Dir(layout.image), layout.modules} {
				if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, layout.image), []byte("kernel"), 0o644); err != nil {
				t.Fatal(err)
			}
			k := Kernel{Suite: "sid", Series: "7", Version: "7.2.1-1"}
			if err := locate(&k, root); err != nil {
				t.Fatal(err)
			}
			if err := cache.keep(k, root); err != nil {
				t.Fatal(err)
			}
			// A cache that was moved is still one.
			cache.Dir = filepath.Join(dir, "new")
			if err := os.Rename(filepath.Join(dir, "old"), cache.Dir); err != nil {
				t.Fatal(err)
			}
			got, err := cache.Load(Kernel{Suite: "sid"})
			if err != nil || got.Release != filepath.Base(layout.modules) || got.Version != "7.2.1-1" {
				t.Fatalf("Load = %+v, %v", got, err)
			}
			if text, err := os.ReadFile(got.Image); err != nil || string(text) != "kernel" {
				t.Errorf("image %q, %v", text, err)
			}
		})
	}
}
