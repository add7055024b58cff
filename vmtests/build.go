package vmtests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

// payload is what a guest gets to run.
type payload struct {
	guest    string            // init
	files    map[string]string // path in the guest -> file on the host
	manifest protocol.Manifest
}

// builder builds static binaries for the guests.
type builder struct {
	root string // of the module
	dir  string // where binaries go
	arch Arch
	tags string // build tags, comma-separated
}

// build builds the guest's init, the tools and the packages' tests.
func (b *builder) build(ctx context.Context, packages []testPackage) (*payload, error) {
	p := &payload{guest: filepath.Join(b.dir, "guest"), files: map[string]string{}}
	if err := b.run(ctx, "build", p.guest, "./vmtests/guest"); err != nil {
		return nil, err
	}
	p.manifest.Env = append(p.manifest.Env, guestEnv...)
	for _, c := range commands {
		name := path.Base(c.path)
		out := filepath.Join(b.dir, name)
		if err := b.run(ctx, "build", out, c.path); err != nil {
			return nil, err
		}
		p.files["/bin/"+name] = out
		p.manifest.Env = append(p.manifest.Env, c.variable+"=/bin/"+name)
	}
	for _, t := range packages {
		if err := b.addTest(ctx, p, t); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// addTest builds the tests of one package. They run in a directory that holds
// the package's testdata, as go test runs them.
func (b *builder) addTest(ctx context.Context, p *payload, t testPackage) error {
	name := strings.ReplaceAll(strings.TrimPrefix(t.path, "./"), "/", "-") + ".test"
	out := filepath.Join(b.dir, name)
	if err := b.run(ctx, "test", out, t.path); err != nil {
		return err
	}
	if _, err := os.Stat(out); err != nil {
		return fmt.Errorf("%s has no tests: take it out of the table of the VM tests", t.path)
	}
	p.files["/tests/"+name] = out
	dir := path.Join("/src", t.path)
	if err := addTree(p.files, filepath.Join(b.root, t.path, "testdata"), dir+"/testdata"); err != nil {
		return err
	}
	p.manifest.Programs = append(p.manifest.Programs, protocol.Program{
		Name:    t.path,
		Path:    "/tests/" + name,
		Dir:     dir,
		Args:    append([]string{"-test.v", "-test.timeout=" + t.timeout.String()}, t.args...),
		Timeout: t.timeout,
	})
	return nil
}

// addTree adds the files below a directory, if there is one.
func addTree(files map[string]string, from, to string) error {
	return filepath.WalkDir(from, func(name string, d os.DirEntry, err error) error {
		if os.IsNotExist(err) && name == from {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() {
			return err
		}
		relative, err := filepath.Rel(from, name)
		files[path.Join(to, filepath.ToSlash(relative))] = name
		return err
	})
}

// run runs go build or go test -c. Symbol tables are left out: the initramfs
// lives in the guest's memory, and stack traces work without them. Tags are said even
// where there are none: go may be set to others (go env -w).
func (b *builder) run(ctx context.Context, verb, out, pkg string) error {
	args := []string{verb, "-ldflags=-s -w", "-trimpath", "-o", out, "-tags=" + b.tags}
	if verb == "test" {
		args = append(args, "-c")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.arch.Name, "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s %s: %w\n%s", verb, pkg, err, text)
	}
	return nil
}
