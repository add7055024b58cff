package vmtests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

// faultTag is the build tag that disables the tripwire.
const faultTag = "tripwire_off"

// settings are what the VMTEST_* variables say.
type settings struct {
	kernels   []Kernel
	packages  []testPackage
	tags      string
	fault     bool   // the tests must fail
	strict    bool   // a failure is final
	chosen    bool   // only some of the tests
	console   string // directory for the guests' consoles; empty for none
	memoryMiB int
	jobs      int
}

// TestKernels boots every kernel and runs the privileged tests inside.
func TestKernels(t *testing.T) {
	if os.Getenv("VMTEST") == "" {
		t.Skip("boots virtual machines; run it with VMTEST=1 (or make vmtest) after go run ./vmtests/kernels")
	}
	set, err := readSettings()
	if err != nil {
		t.Fatal(err)
	}
	arch, err := SelectedArch()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := OpenCache(arch)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range set.kernels {
		if set.kernels[i], err = cache.Load(k); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := cache.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	b := builder{root: "..", dir: t.TempDir(), arch: arch, tags: set.tags}
	p, err := b.build(t.Context(), set.packages)
	if err != nil {
		t.Fatal(err)
	}
	p.manifest.Env = append(p.manifest.Env, strings.Fields(os.Getenv("VMTEST_ENV"))...)
	base := filepath.Join(b.dir, "initramfs.cpio")
	if err := writeFile(base, func(f *os.File) error { return writeBase(f, p, busybox) }); err != nil {
		t.Fatal(err)
	}
	// The last lines are what somebody sees who sees only the end of the output.
	var table results
	t.Cleanup(func() { t.Log(table.String()) })
	places := newPlaces(set.jobs)
	// The newest takes the longest, and begins. Which of parallel tests goes on first is
	// the testing package's affair, so each waits until all that go on are there.
	slices.Reverse(set.kernels)
	for i, k := range set.kernels {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			places.enlist(i)
			time.Sleep(time.Second)
			places.take(i)
			defer places.leave()
			defer func() { table.add(k.String(), t.Failed()) }()
			testKernel(t, set, arch, k, base, p.manifest, &table)
		})
	}
}

// testKernel boots one kernel and judges its verdict.
func testKernel(t *testing.T, set *settings, arch Arch, k Kernel, base string, m protocol.Manifest, table *results) {
	packages := set.packages
	initramfs, err := withModules(t, base, k, modules)
	if err != nil {
		t.Fatal(err)
	}
	guest := vm{
		arch: arch, kernel: k.Image, initramfs: initramfs, memoryMiB: set.memoryMiB,
		limit: 2 * time.Minute, silence: time.Minute,
	}
	for _, p := range packages {
		guest.limit += p.timeout
	}
	if set.console != "" {
		guest.copyTo = keepConsole(t, set.console, strings.ReplaceAll(k.String(), " ", "_"))
	}
	result, err := decide(t.Context(), t.Logf, guest.boot)
	if err != nil {
		var died *infrastructureError
		if errors.As(err, &died) {
			t.Log("console of the guest:\n" + died.console)
			table.say(k.String(), []string{err.Error()}, strings.Split(tail(died.console, 30), "\n"))
		}
		t.Fatal(err)
	}
	t.Log(summary(result))
	table.summarise(k.String(), summary(result))
	for _, o := range result.verdict.Outcomes {
		for _, skip := range o.Skips {
			t.Logf("skipped in %s: %s", o.Name, skip)
		}
	}
	problems := judge(result.verdict, packages, set.fault)
	if result.verdict.Taint != 0 && len(problems) == 0 {
		t.Log("the kernel warned; the end of its console:\n" + tail(result.console, 60))
	}
	if len(problems) == 0 {
		if set.chosen { // who asks for certain tests wants to see what they say
			t.Log("console of the guest:\n" + result.console)
		}
		return
	}
	t.Log("console of the guest:\n" + result.console)
	var again string
	passed := !set.fault && !set.strict && unstable(t, guest, result.verdict, m, func(s string) { again = s })
	for _, problem := range problems {
		if passed {
			t.Log(problem)
		} else {
			t.Error(problem)
		}
	}
	if again != "" {
		t.Log(again)
		problems = append(problems, again)
	}
	table.say(k.String(), problems, failureLines(result.console, 60))
}

// judge returns what is wrong with a verdict. With a fault injected what is
// wrong is that no test noticed.
func judge(v protocol.Verdict, packages []testPackage, fault bool) []string {
	if v.Trouble != "" {
		return []string{"the guest could not run the tests: " + v.Trouble}
	}
	if len(v.Outcomes) != len(packages) {
		return []string{fmt.Sprintf("%d of %d packages were run", len(v.Outcomes), len(packages))}
	}
	var problems []string
	for i, o := range v.Outcomes {
		wanted := packages[i].feelsFault
		switch {
		case fault && !slices.Contains(o.Failures, wanted):
			problems = append(problems, fmt.Sprintf("%s: %s did not fail although the tripwire was disabled", o.Name, wanted))
		case !fault && o.Status != "":
			problems = append(problems, fmt.Sprintf("%s: %s: %s", o.Name, o.Status, strings.Join(o.Failures, " ")))
		}
	}
	return problems
}

// summary is the line about one boot.
func summary(r run) string {
	var sum protocol.Counts
	var parts []string
	strays := 0
	for _, o := range r.verdict.Outcomes {
		sum = sum.Add(o.Counts)
		strays += o.Strays
		parts = append(parts, fmt.Sprintf("%s %.1f s", strings.TrimPrefix(o.Name, "./"), o.Seconds))
	}
	line := fmt.Sprintf("Linux %s: %d passed, %d failed, %d skipped; boot %.1f s, total %.1f s (%s)",
		r.verdict.Release, sum.Passed, sum.Failed, sum.Skipped, r.boot.Seconds(), r.total.Seconds(),
		strings.Join(parts, ", "))
	if r.boots > 1 {
		line += "; THE FIRST BOOT DIED"
	}
	if strays > 0 {
		line += fmt.Sprintf("; %d processes left behind", strays)
	}
	if r.verdict.Taint != 0 {
		line += fmt.Sprintf("; the kernel is tainted: %d", r.verdict.Taint)
	}
	return line
}

// withModules returns an initramfs that also holds the wanted modules of k. A
// kernel given by path is taken to have them built in.
func withModules(t *testing.T, base string, k Kernel, wanted []string, optional ...string) (string, error) {
	if len(wanted) == 0 || k.Modules == "" {
		return base, nil
	}
	tree, err := openModules(t.Context(), k.Modules)
	if err != nil {
		return "", err
	}
	optional = slices.DeleteFunc(slices.Concat(optional, optionalModules), func(m string) bool { return !tree.has(m) })
	loaded, err := tree.load(append(optional, wanted...)...)
	if err != nil {
		return "", err
	}
	archive, err := moduleArchive(loaded)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(base)
	if err != nil {
		return "", err
	}
	name := filepath.Join(t.TempDir(), "initramfs.cpio")
	return name, os.WriteFile(name, append(data, archive...), 0o644)
}

func readSettings() (*settings, error) {
	set := &settings{
		packages: slices.Clone(programs),
		tags:     os.Getenv("VMTEST_TAGS"),
		fault:    os.Getenv("VMTEST_FAULT") != "",
		strict:   os.Getenv("VMTEST_STRICT") != "",
		chosen:   os.Getenv("VMTEST_ARGS") != "",
		console:  os.Getenv("VMTEST_CONSOLE"),
	}
	var err error
	if set.kernels, err = Select(os.Getenv("VMTEST_KERNELS")); err != nil {
		return nil, err
	}
	if set.memoryMiB, err = guestMemoryMiB(); err != nil {
		return nil, err
	}
	if set.fault {
		set.tags = strings.Trim(set.tags+","+faultTag, ",")
		set.packages = faultPackages()
	}
	if narrow := os.Getenv("VMTEST_PACKAGES"); narrow != "" && !set.fault {
		set.packages = nil
		for _, path := range strings.Split(narrow, ",") {
			set.packages = append(set.packages, packageOf(path))
		}
	}
	if text := os.Getenv("VMTEST_LIMIT"); text != "" {
		limit, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("VMTEST_LIMIT: %w", err)
		}
		for i := range set.packages {
			set.packages[i].timeout = limit
		}
	}
	for i := range set.packages {
		set.packages[i].args = append(slices.Clone(set.packages[i].args), strings.Fields(os.Getenv("VMTEST_ARGS"))...)
	}
	if set.jobs, err = jobs(); err != nil {
		return nil, err
	}
	return set, nil
}

// keepConsole creates the file dir/name.log for a guest's console, and dir where it is
// missing. The test closes it in its end.
func keepConsole(t *testing.T, dir, name string) *os.File {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// jobs is how many machines run at a time.
func jobs() (int, error) {
	text := os.Getenv("VMTEST_JOBS")
	if text == "" {
		return max(1, min(2, runtime.NumCPU())), nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("VMTEST_JOBS=%q: want how many machines to run at a time", text)
	}
	return n, nil
}

// faultPackages are the packages that notice a disabled tripwire, with only
// the tests that must.
func faultPackages() []testPackage {
	var packages []testPackage
	for _, p := range programs {
		if p.feelsFault != "" {
			p.args = append(slices.Clone(p.args), "-test.run=^"+p.feelsFault+"$")
			packages = append(packages, p)
		}
	}
	return packages
}

// packageOf returns the table's row for a package, or one for a package that
// is not in it.
func packageOf(path string) testPackage {
	for _, p := range slices.Concat(programs, onRequest) {
		if p.path == path {
			return p
		}
	}
	return testPackage{path: path, timeout: 3 * time.Minute}
}

func writeFile(name string, write func(*os.File) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
