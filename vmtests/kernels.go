package vmtests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Kernel is one kernel to boot.
type Kernel struct {
	// Suite and Series are how VMTEST_KERNELS may name it: "bookworm" or
	// "6.1". Both are empty for a kernel given by path.
	Suite, Series string
	Release       string `json:",omitempty"` // uname -r, where known
	Version       string `json:",omitempty"` // of the Debian package
	Image         string // path of the bzImage
	Modules       string `json:",omitempty"` // its modules directory
}

func (k Kernel) String() string {
	switch {
	case k.Suite == "":
		return filepath.Base(k.Image)
	case k.Release == "":
		return k.Suite + " " + k.Series
	}
	return fmt.Sprintf("%s %s (%s)", k.Suite, k.Release, k.Version)
}

// suites are the Debian suites whose cloud kernels are booted. sid moves: its
// series is read as whatever it ships.
var suites = []Kernel{
	{Suite: "bullseye", Series: "5.10"},
	{Suite: "bookworm", Series: "6.1"},
	{Suite: "trixie", Series: "6.12"},
	{Suite: "sid", Series: "7"},
}

// busyboxSuite is where the guests' busybox comes from.
const busyboxSuite = "bookworm"

// Cache is a directory of unpacked kernels.
type Cache struct {
	Dir  string
	Arch Arch
}

// OpenCache returns the cache that VMTEST_CACHE names, by default bpfkill's
// directory under the user's cache directory. It need not exist yet.
func OpenCache(arch Arch) (*Cache, error) {
	dir := os.Getenv("VMTEST_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a place for kernels: %w; set VMTEST_CACHE", err)
		}
		dir = filepath.Join(base, "bpfkill", "kernels")
	}
	return &Cache{Dir: filepath.Join(dir, arch.Name), Arch: arch}, nil
}

// ErrNotCached says that a kernel has to be fetched first.
var ErrNotCached = errors.New("not in the cache: run go run ./vmtests/kernels once with a network")

// Select returns the kernels that spec names: a comma-separated list of
// suites, series, release prefixes or paths of kernel images. The empty spec
// names every suite. Those of Debian need not be cached yet.
func Select(spec string) ([]Kernel, error) {
	if spec == "" {
		return append([]Kernel(nil), suites...), nil
	}
	var chosen []Kernel
	for _, word := range strings.Split(spec, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		kernel, err := selectOne(word)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, kernel)
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no kernel named in %q", spec)
	}
	return chosen, nil
}

func selectOne(word string) (Kernel, error) {
	for _, k := range suites {
		if word == k.Suite || word == k.Series || strings.HasPrefix(word, k.Series+".") {
			return k, nil
		}
	}
	if info, err := os.Stat(word); err == nil && info.Mode().IsRegular() {
		return Kernel{Image: word}, nil
	}
	var known []string
	for _, k := range suites {
		known = append(known, k.Suite, k.Series)
	}
	return Kernel{}, fmt.Errorf("kernel %q: neither one of %s nor a file", word, strings.Join(known, ", "))
}

// Load completes a selected kernel from the cache, without a network. The
// error is [ErrNotCached] where it was never fetched.
func (c *Cache) Load(k Kernel) (Kernel, error) {
	if k.Suite == "" {
		return k, nil
	}
	record, err := os.ReadFile(c.record(k.Suite))
	if errors.Is(err, fs.ErrNotExist) {
		return k, fmt.Errorf("kernel of %s: %w", k.Suite, ErrNotCached)
	}
	if err != nil {
		return k, fmt.Errorf("kernel of %s: %w", k.Suite, err)
	}
	var found Kernel
	if err := json.Unmarshal(record, &found); err != nil {
		return k, fmt.Errorf("kernel of %s: %w; remove %s", k.Suite, err, c.record(k.Suite))
	}
	// Paths are stored relative, so that the cache can be moved.
	found.Image = filepath.Join(c.Dir, found.Image)
	found.Modules = filepath.Join(c.Dir, found.Modules)
	if _, err := os.Stat(found.Image); err != nil {
		return k, fmt.Errorf("kernel of %s: %w", k.Suite, ErrNotCached)
	}
	return found, nil
}

// Fetch downloads a selected kernel through apt, replacing a cached one.
func (c *Cache) Fetch(ctx context.Context, k Kernel) (Kernel, error) {
	if k.Suite == "" {
		return k, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return k, fmt.Errorf("fetch %s: %w", k.Suite, err)
	}
	work, err := os.MkdirTemp(c.Dir, ".fetch-")
	if err != nil {
		return k, fmt.Errorf("fetch %s: %w", k.Suite, err)
	}
	defer os.RemoveAll(work)

	source, err := openSuite(ctx, filepath.Join(work, "apt"), k.Suite, c.Arch.Name)
	if err != nil {
		return k, err
	}
	parts, version, err := source.kernelParts(ctx, "linux-image-cloud-"+c.Arch.Name)
	if err != nil {
		return k, err
	}
	if k.Suite == busyboxSuite {
		parts = append(parts, "busybox-static")
	}
	root := filepath.Join(work, "root")
	if err := source.unpack(ctx, root, parts...); err != nil {
		return k, err
	}
	k.Version = version
	if err := locate(&k, root); err != nil {
		return k, fmt.Errorf("fetch %s: %w", k.Suite, err)
	}
	if err := c.keep(k, root); err != nil {
		return k, fmt.Errorf("fetch %s: %w", k.Suite, err)
	}
	return c.Load(k)
}

// locate finds image and modules below root and stores their paths relative
// to it.
func locate(k *Kernel, root string) error {
	for _, pattern := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"} {
		if found, _ := filepath.Glob(filepath.Join(root, pattern)); len(found) == 1 {
			k.Image = found[0]
		}
	}
	for _, pattern := range []string{"lib/modules/*", "usr/lib/modules/*"} {
		if found, _ := filepath.Glob(filepath.Join(root, pattern)); len(found) == 1 {
			k.Modules, k.Release = found[0], filepath.Base(found[0])
		}
	}
	if k.Image == "" || k.Modules == "" {
		return errors.New("the packages hold no kernel image, or no modules, where one is expected")
	}
	var err error
	if k.Image, err = filepath.Rel(root, k.Image); err != nil {
		return err
	}
	k.Modules, err = filepath.Rel(root, k.Modules)
	return err
}

// keep moves the unpacked kernel to its place.
func (c *Cache) keep(k Kernel, root string) error {
	k.Image = filepath.Join(k.Suite, k.Image)
	k.Modules = filepath.Join(k.Suite, k.Modules)
	return c.store(k.Suite, root, k)
}

// store moves what is unpacked below root to its place and then writes its record:
// what has no record does not count as cached.
func (c *Cache) store(name, root string, what any) error {
	if err := os.Remove(c.record(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	place := filepath.Join(c.Dir, name)
	if err := os.RemoveAll(place); err != nil {
		return err
	}
	if err := os.Rename(root, place); err != nil {
		return err
	}
	record, err := json.MarshalIndent(what, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(c.record(name), append(record, '\n'), 0o644)
}

func (c *Cache) record(name string) string { return filepath.Join(c.Dir, name+".json") }

// Busybox returns the path of a static busybox for the guests: the machine's
// own where it is Debian's busybox-static and of that architecture, else the one fetched beside the
// kernel of bookworm.
func (c *Cache) Busybox() (string, error) {
	cached, err := filepath.Glob(filepath.Join(c.Dir, busyboxSuite, "*bin", "busybox"))
	if err != nil {
		return "", err
	}
	usr, _ := filepath.Glob(filepath.Join(c.Dir, busyboxSuite, "usr/bin/busybox"))
	for _, candidate := range append(append(cached, usr...), "/bin/busybox", "/usr/bin/busybox") {
		if static, err := staticBinary(candidate, c.Arch); err == nil && static {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("no static busybox for %s: run go run ./vmtests/kernels %s", c.Arch.Name, busyboxSuite)
}
