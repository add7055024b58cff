package vmtests

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// debianKeyring signs every suite of Debian, old and new.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// aptSource is a private view of one Debian suite: package lists of its own,
// nothing of the machine's state is read but the mirror and the keyrings, and
// nothing of it is changed.
type aptSource struct {
	dir     string // lists and configuration, created by openSuite
	options []string
}

// debianMirror returns the URI of the Debian archive that this machine's apt
// uses. The same mirror serves the other suites.
func debianMirror(ctx context.Context) (string, error) {
	out, err := output(ctx, "", "apt-get", "indextargets", "--format",
		"$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", fmt.Errorf("ask apt for its mirror: %w", err)
	}
	for line := range strings.Lines(out) {
		if uri, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian|Debian|main|"); ok {
			return uri, nil
		}
	}
	return "", errors.New("apt knows no Debian mirror: run apt-get update, " +
		"or on another distribution name a bzImage in VMTEST_KERNELS")
}

// openSuite fetches the package lists of suite into dir.
func openSuite(ctx context.Context, dir, suite, arch string) (*aptSource, error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("prepare package lists: %w", err)
		}
	}
	signedBy := ""
	if _, err := os.Stat(debianKeyring); err == nil {
		signedBy = "[signed-by=" + debianKeyring + "] "
	}
	files := map[string]string{
		"sources.list": fmt.Sprintf("deb %s%s %s main\n", signedBy, mirror, suite),
		"status":       "", // nothing counts as installed
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("prepare package lists: %w", err)
		}
	}
	s := &aptSource{dir: dir, options: []string{
		"-o", "Dir::Etc::SourceList=" + filepath.Join(dir, "sources.list"),
		"-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "lists"),
		"-o", "Dir::State::Status=" + filepath.Join(dir, "status"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "APT::Architecture=" + arch,
		"-o", "APT::Architectures=" + arch,
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "APT::Update::Error-Mode=any",
		// The unprivileged download user may not enter a cache in root's home.
		"-o", "APT::Sandbox::User=root",
	}}
	if _, err := s.run(ctx, "", "apt-get", "--quiet", "update"); err != nil {
		return nil, fmt.Errorf("fetch the package lists of %s: %w", suite, err)
	}
	return s, nil
}

// run runs one of apt's commands on the private lists.
func (s *aptSource) run(ctx context.Context, dir, command string, args ...string) (string, error) {
	return output(ctx, dir, command, append(append([]string{}, s.options...), args...)...)
}

// fields returns the wanted fields of a package's newest version.
func (s *aptSource) fields(ctx context.Context, pkg string) (map[string]string, error) {
	out, err := s.run(ctx, "", "apt-cache", "--no-all-versions", "show", pkg)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", pkg, err)
	}
	fields := map[string]string{}
	scanner := bufio.NewScanner(strings.NewReader(out))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if name, value, ok := strings.Cut(scanner.Text(), ": "); ok {
			fields[name] = value
		}
	}
	return fields, scanner.Err()
}

// kernelPart matches the packages that hold a kernel or its modules, not the
// metapackages: their names go on with a version.
var kernelPart = regexp.MustCompile(`^linux-(image|binary|modules)-[0-9]`)

// kernelParts lists the packages that make up the kernel that meta stands
// for, and the kernel's version. Since 7.x Debian ships image and modules
// apart.
func (s *aptSource) kernelParts(ctx context.Context, meta string) (parts []string, version string, err error) {
	seen := map[string]bool{}
	queue := []string{meta}
	for len(queue) > 0 {
		pkg := queue[0]
		queue = queue[1:]
		fields, err := s.fields(ctx, pkg)
		if err != nil {
			return nil, "", err
		}
		if version == "" {
			version = fields["Version"]
		}
		for _, dependency := range strings.Split(fields["Depends"], ",") {
			name, _, _ := strings.Cut(strings.TrimSpace(dependency), " ")
			if kernelPart.MatchString(name) && !seen[name] {
				seen[name] = true
				parts = append(parts, name)
				queue = append(queue, name)
			}
		}
	}
	if len(parts) == 0 {
		return nil, "", fmt.Errorf("%s names no kernel package", meta)
	}
	return parts, version, nil
}

// unpack downloads packages and extracts them under root. Nothing is
// installed, and no maintainer script runs.
func (s *aptSource) unpack(ctx context.Context, root string, packages ...string) error {
	debs := filepath.Join(s.dir, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if _, err := s.run(ctx, debs, "apt-get", append([]string{"--quiet", "download"}, packages...)...); err != nil {
		return fmt.Errorf("download %s: %w", strings.Join(packages, " "), err)
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil || len(files) < len(packages) {
		return fmt.Errorf("download %s: %d files came (%w)", strings.Join(packages, " "), len(files), err)
	}
	for _, deb := range files {
		if _, err := output(ctx, "", "dpkg", "-x", deb, root); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
		if err := os.Remove(deb); err != nil {
			return err
		}
	}
	return nil
}

// output runs a command in dir and returns its standard output; the error
// carries what it said on standard error.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			return "", fmt.Errorf("%s: %w: %s", name, err, text)
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return stdout.String(), nil
}
