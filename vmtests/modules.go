package vmtests

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Module is a kernel module, decompressed and ready to load.
type Module struct {
	Name string
	Data []byte
}

// moduleTree finds modules below one kernel's modules directory. Debian's
// packages carry no modules.dep (depmod writes it at installation), so the
// dependencies are read from the modules themselves.
type moduleTree struct {
	files   map[string]string // name -> path
	builtin map[string]bool
	read    func(path string) ([]byte, error) // a module file, decompressed
}

// moduleName turns a path or a spelling into the name that dependencies use.
func moduleName(s string) string {
	s, _, _ = strings.Cut(filepath.Base(s), ".ko")
	return strings.ReplaceAll(s, "-", "_")
}

// openModules indexes a modules directory.
func openModules(ctx context.Context, dir string) (*moduleTree, error) {
	t := &moduleTree{files: map[string]string{}, builtin: map[string]bool{}}
	t.read = func(path string) ([]byte, error) { return readModule(ctx, path) }
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			t.files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("index modules: %w", err)
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("index modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		t.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return t, nil
}

// has reports whether there is a module of that name to load.
func (t *moduleTree) has(name string) bool { return t.files[moduleName(name)] != "" }

// load returns the wanted modules and all they depend on, in an order in
// which they can be loaded. Modules built into the kernel need no loading.
func (t *moduleTree) load(wanted ...string) ([]Module, error) {
	var ordered []Module
	state := map[string]int{} // 1 on the way, 2 done
	var visit func(name string, optional bool) error
	visit = func(name string, optional bool) error {
		name = moduleName(name)
		if state[name] == 2 || t.builtin[name] {
			return nil
		}
		if state[name] == 1 {
			return fmt.Errorf("module %s depends on itself", name)
		}
		path, ok := t.files[name]
		if !ok {
			if optional {
				return nil
			}
			return fmt.Errorf("module %s: this kernel has no such module", name)
		}
		state[name] = 1
		data, err := t.read(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		hard, soft, err := moduleDependencies(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, dependency := range hard {
			if err := visit(dependency, false); err != nil {
				return fmt.Errorf("module %s needs %w", name, err)
			}
		}
		for _, dependency := range soft {
			if err := visit(dependency, true); err != nil {
				return fmt.Errorf("module %s needs %w", name, err)
			}
		}
		state[name] = 2
		ordered = append(ordered, Module{name, data})
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, false); err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

// moduleDependencies reads what a module must find loaded (depends=) and what
// it would like to (softdep=pre:) from its .modinfo section.
func moduleDependencies(data []byte) (hard, soft []string, err error) {
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, nil, fmt.Errorf("not a module: %w", err)
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, nil, errors.New("not a module: no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, fmt.Errorf("read .modinfo: %w", err)
	}
	for _, entry := range strings.Split(string(info), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			hard = append(hard, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			soft = append(soft, softDependencies(value)...)
		}
	}
	return hard, soft, nil
}

// softDependencies returns the names after "pre:" in a softdep entry.
func softDependencies(value string) []string {
	var names []string
	pre := false
	for _, word := range strings.Fields(value) {
		switch word {
		case "pre:":
			pre = true
		case "post:":
			pre = false
		default:
			if pre {
				names = append(names, word)
			}
		}
	}
	return names
}

// readModule reads a module file, decompressing it by its suffix.
func readModule(ctx context.Context, path string) ([]byte, error) {
	decompressors := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
	tool, compressed := decompressors[filepath.Ext(path)]
	if !compressed {
		return os.ReadFile(path)
	}
	out, err := exec.CommandContext(ctx, tool, "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("decompress with %s: %w", tool, err)
	}
	return out, nil
}
