package vmtests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
)

// Emulator is a QEMU whose guests can have a clock that counts instructions: a
// nanosecond for each, whatever the machine that emulates them is at. It is new
// enough to give each of a guest's processors its share of them: before QEMU 8.1
// one that was busy kept the other from running.
type Emulator struct {
	Command string
	Data    []string `json:",omitempty"` // directories of firmware, where it does not know them itself
	Version string
}

func (e *Emulator) String() string { return fmt.Sprintf("%s %s", filepath.Base(e.Command), e.Version) }

const (
	// emulatorSuite has a newer QEMU for the Debian that had an older one.
	emulatorSuite = "bookworm-backports"
	emulatorPlace = "qemu" // in the cache
)

var (
	emulatorVersion = regexp.MustCompile(`version ((\d+)\.(\d+)[.\d]*)`)
	emulatorFirst   = [2]int{8, 1}
	// emulatorPackages are what holds a QEMU and its firmware, for each machine that
	// is emulated.
	emulatorPackages = map[string][]string{
		"amd64": {"qemu-system-x86", "qemu-system-data", "seabios"},
		"arm64": {"qemu-system-arm", "qemu-system-data"},
	}
)

// Emulator returns the machine's own QEMU, or the one in the cache if that is too
// old. The error is [ErrNotCached] where there is neither.
func (c *Cache) Emulator(ctx context.Context) (*Emulator, error) {
	version, err := recentQEMU(ctx, c.Arch.Name, c.Arch.QEMU)
	if err == nil {
		return &Emulator{Command: c.Arch.QEMU, Version: version}, nil
	}
	if errors.Is(err, exec.ErrNotFound) { // and neither are the libraries of one in the cache
		return nil, err
	}
	record, err := os.ReadFile(c.record(emulatorPlace))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("QEMU %d.%d or later: %w", emulatorFirst[0], emulatorFirst[1], ErrNotCached)
	}
	if err != nil {
		return nil, err
	}
	var e Emulator
	if err := json.Unmarshal(record, &e); err != nil {
		return nil, fmt.Errorf("%w; remove %s", err, c.record(emulatorPlace))
	}
	// Paths are stored relative, so that the cache can be moved.
	place := filepath.Join(c.Dir, emulatorPlace)
	e.Command = filepath.Join(place, e.Command)
	for i := range e.Data {
		e.Data[i] = filepath.Join(place, e.Data[i])
	}
	return &e, nil
}

// FetchEmulator downloads QEMU through apt, replacing a cached one. The libraries
// that it needs are those of the machine's own QEMU.
func (c *Cache) FetchEmulator(ctx context.Context) (*Emulator, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(c.Dir, ".fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	source, err := openSuite(ctx, filepath.Join(work, "apt"), emulatorSuite, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(work, "root")
	if err := source.unpack(ctx, root, emulatorPackages[c.Arch.Name]...); err != nil {
		return nil, err
	}
	e := Emulator{Command: filepath.Join("usr/bin", c.Arch.QEMU), Data: []string{"usr/share/qemu", "usr/share/seabios"}}
	if e.Version, err = recentQEMU(ctx, c.Arch.Name, filepath.Join(root, e.Command)); err != nil {
		return nil, fmt.Errorf("the QEMU of %s: %w", emulatorSuite, err)
	}
	if err := c.store(emulatorPlace, root, e); err != nil {
		return nil, err
	}
	return c.Emulator(ctx)
}

// recentQEMU returns the version of a QEMU that is recent enough.
func recentQEMU(ctx context.Context, arch, command string) (string, error) {
	out, err := output(ctx, "", command, "--version")
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: VMTEST_ARCH=%s make setup installs it", err, arch)
	}
	if err != nil {
		return "", err
	}
	found := emulatorVersion.FindStringSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("%s says no version: %q", command, out)
	}
	major, _ := strconv.Atoi(found[2]) // digits, as matched
	minor, _ := strconv.Atoi(found[3])
	if major < emulatorFirst[0] || major == emulatorFirst[0] && minor < emulatorFirst[1] {
		return "", fmt.Errorf("%s %s is older than %d.%d", filepath.Base(command), found[1], emulatorFirst[0], emulatorFirst[1])
	}
	return found[1], nil
}
