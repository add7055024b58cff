package vmtests

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A guest of another architecture must not get this machine's busybox.
func TestStaticBinary(t *testing.T) {
	source := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, built := range arches {
		binary := filepath.Join(t.TempDir(), built.Name)
		cmd := exec.Command("go", "build", "-o", binary, source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+built.Name, "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, wanted := range arches {
			got, err := staticBinary(binary, wanted)
			if err != nil || got != (built.Name == wanted.Name) {
				t.Errorf("binary of %s for a guest of %s: %v (%v)", built.Name, wanted.Name, got, err)
			}
		}
	}
}
