package vmtests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeQEMU writes a command that says a version, and nothing else.
func fakeQEMU(t *testing.T, path, says string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestEmulator(t *testing.T) {
	own := filepath.Join(t.TempDir(), "qemu-system-test")
	cache := &Cache{Dir: t.TempDir(), Arch: Arch{Name: "amd64", QEMU: own}}
	for _, tc := range []struct{ says, version, err string }{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", "", "older than 8.1"},
		{"QEMU emulator version 8.0.50", "", "older than 8.1"},
		{"QEMU emulator version 8.1.0", "8.1.0", ""},
		{"QEMU emulator version 10.0.2 (Debian)", "10.0.2", ""},
		{"nothing", "", "no version"},
	} {
		fakeQEMU(t, own, tc.says)
		version, err := recentQEMU(t.Context(), "amd64", own)
		if tc.err == "" && (err != nil || version != tc.version) {
			t.Errorf("%q: %q, %v; want %q", tc.says, version, err, tc.version)
		}
		if tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%q: error %v, want one with %q", tc.says, err, tc.err)
		}
	}
	// Too old, and none in the cache.
	if _, err := cache.Emulator(t.Context()); !errors.Is(err, ErrNotCached) || !strings.Contains(err.Error(), "go run ./vmtests/kernels") {
		t.Errorf("error %v, want one with the remedy", err)
	}
	// That of the cache, wherever the cache is.
	record := `{"Command": "usr/bin/qemu", "Data": ["usr/share/qemu"], "Version": "10.0.2"}`
	if err := os.WriteFile(cache.record(emulatorPlace), []byte(record), 0o644); err != nil {
		t.Fatal(err)
	}
	e, err := cache.Emulator(t.Context())
	place := filepath.Join(cache.Dir, emulatorPlace)
	if err != nil || e.Command != filepath.Join(place, "usr/bin/qemu") || len(e.Data) != 1 || e.Data[0] != filepath.Join(place, "usr/share/qemu") {
		t.Errorf("%+v, %v; want the cache's", e, err)
	}
	// The machine's own comes first.
	fakeQEMU(t, own, "QEMU emulator version 9.2.1")
	if e, err := cache.Emulator(t.Context()); err != nil || e.Command != own || e.Version != "9.2.1" || e.Data != nil {
		t.Errorf("%+v, %v; want the machine's own", e, err)
	}
}
