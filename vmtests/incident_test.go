package vmtests

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/incident"
)

// incidentSettings are what the INCIDENT_* variables say. Without them it is a
// pair: the command of the incident, and bpfkill.
type incidentSettings struct {
	strategies []string
	runs       int
	servers    int
	routerMiB  int
	memoryMiB  int
	cpus       int
	jobs       int
	counting   *Emulator // nil: the guests' clock is the machine's, which they must not share
	results    string    // file that results are added to, one JSON object a line; empty for none
}

const incidentSwapMiB = 6 << 10 // sparse

// incidentModules are what the swap disk needs, and incidentBus where that is no
// part of the kernel.
var (
	incidentModules = []string{"virtio_blk"}
	incidentBus     = []string{"virtio_pci"}
)

var incidentProgram = testPackage{path: "./vmtests/incident", timeout: 12 * time.Minute}

// TestIncident boots a machine for each kernel, strategy and run, and stages the
// incident in it.
func TestIncident(t *testing.T) {
	if os.Getenv("VMTEST") == "" {
		t.Skip("boots virtual machines; run it with VMTEST=1 (or make incident)")
	}
	set, err := readIncidentSettings()
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
	if os.Getenv("VMTEST_ACCEL") == "" {
		if set.counting, err = cache.Emulator(t.Context()); err != nil {
			t.Fatal(err)
		}
		if set.jobs, err = jobs(); err != nil {
			t.Fatal(err)
		}
	}
	places := make(chan struct{}, max(1, set.jobs))
	kernels, err := Select(cmp.Or(os.Getenv("INCIDENT_KERNELS"), "6.12"))
	if err != nil {
		t.Fatal(err)
	}
	base := buildBase(t, cache, []testPackage{incidentProgram})
	for _, k := range kernels {
		if k, err = cache.Load(k); err != nil {
			t.Fatal(err)
		}
		initramfs, err := withModules(t, base, k, incidentModules, incidentBus...)
		if err != nil {
			t.Fatal(err)
		}
		for run := range set.runs {
			for _, name := range set.strategies {
				t.Run(fmt.Sprintf("%s/%s/%d", k.Series, name, run+1), func(t *testing.T) {
					t.Parallel()
					places <- struct{}{}
					defer func() { <-places }()
					result := stageIncident(t, set, arch, k, initramfs, cache.Dir, name)
					result.Run = run + 1
					set.keep(t, result) // also what misses a bar, or failed: else the data could not but be good
					if result.Measured() {
						checkBars(t, result)
					}
				})
			}
		}
	}
}

// buildBase builds what the guests run and the initramfs that all kernels share.
func buildBase(t *testing.T, cache *Cache, packages []testPackage) string {
	t.Helper()
	busybox, err := cache.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	b := builder{root: "..", dir: t.TempDir(), arch: cache.Arch}
	p, err := b.build(t.Context(), packages)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(b.dir, "initramfs.cpio")
	if err := writeFile(base, func(f *os.File) error { return writeBase(f, p, busybox) }); err != nil {
		t.Fatal(err)
	}
	return base
}

// stageIncident boots one machine, with its disk in dir, and returns what it measured:
// nothing but the trouble, where it died.
func stageIncident(t *testing.T, set *incidentSettings, arch Arch, k Kernel, initramfs, dir, strategy string) *incident.Result {
	t.Helper()
	staging := incident.Staging{Strategy: strategy, Servers: set.servers, RouterMiB: set.routerMiB}
	guest := vm{
		arch: arch, kernel: k.Image, initramfs: initramfs, memoryMiB: set.memoryMiB,
		limit: incidentProgram.timeout, silence: 3 * time.Minute,
		cpus: set.cpus, counting: set.counting,
		// Programs are in memory that is not paged out: reading them from a disk is
		// what every way of killing has to do, and not what is measured.
		parameters: []string{staging.String(), "psi=1", "rootfstype=ramfs"},
	}
	if dir := os.Getenv("VMTEST_CONSOLE"); dir != "" {
		guest.copyTo = keepConsole(t, dir, strings.ReplaceAll(strings.TrimPrefix(t.Name(), "Test"), "/", "-"))
	}
	begin := time.Now()
	booted, err := decide(t.Context(), t.Logf, func(ctx context.Context) (run, error) {
		// Fresh each time: nothing of an earlier machine may be in it. It has no name,
		// and so is gone with the machine, however this process ends.
		image, err := os.CreateTemp(dir, ".swap-")
		if err != nil {
			return run{}, err
		}
		defer image.Close()
		if err := cmp.Or(os.Remove(image.Name()), image.Truncate(incidentSwapMiB<<20)); err != nil {
			return run{}, err
		}
		guest.swapDisk = image
		return guest.boot(ctx)
	})
	var result *incident.Result
	if err == nil {
		result, err = incident.FromConsole(booted.console)
	}
	if err != nil {
		var died *infrastructureError
		if errors.As(err, &died) {
			booted.console = died.console
		}
		t.Errorf("%v; console of the guest:\n%s", err, booted.console)
		result = &incident.Result{Strategy: strategy, Kernel: cmp.Or(k.Release, k.String()), Arch: arch.Name, CPUs: set.cpus,
			Servers: set.servers, Routers: set.servers, RouterBytes: int64(set.routerMiB) << 20, Trouble: err.Error()}
	} else {
		problems := judge(booted.verdict, []testPackage{incidentProgram}, false)
		for _, problem := range problems {
			t.Errorf("%s; the end of its console:\n%s", problem, tail(withoutResults(booted.console), 40))
		}
		result.Trouble = strings.Join(problems, "; ")
	}
	result.Boots = booted.boots
	if set.counting != nil {
		result.Clock = incident.InstructionClock
	}
	result.Date = begin.UTC().Format(time.DateOnly)
	if !result.Measured() {
		return result
	}
	t.Logf("Linux %s, %s: %d pages swapped in, %d by the woken, %d by the dying, %d by others (major faults: %d by the woken, %d by the dying, %d by the killer, %d by the servers' parent, %d by the heartbeat; %d pages swapped out), %d ran, heartbeat gap %.0f ms at %.0f ms (began %.0f ms late, of it ran %.0f and waited %.0f ms for CPU %d, %d major faults; quiet %.0f), gone after %.0f ms, calm after %.0f ms, PSI full %d ms; boot to verdict %.0f s",
		result.Kernel, strategy, result.SwapInPages, result.PagesWoken, result.PagesDying, result.PagesOthers, result.FaultsWoken, result.FaultsDying, result.FaultsKiller, result.FaultsParent,
		result.FaultsHeartbeat, result.SwapOutPages, result.RanUserCode,
		result.HeartbeatGapMS, result.HeartbeatGapAtMS, result.HeartbeatGapLateMS, result.HeartbeatGapRanMS, result.HeartbeatGapWaitMS, result.HeartbeatGapCPU, result.HeartbeatGapFaults, result.QuietGapMS, result.GoneMS, result.CalmMS, result.PSIFullUS/1000, booted.total.Seconds())
	return result
}

func withoutResults(console string) string {
	var b strings.Builder
	for line := range strings.Lines(console) {
		if !strings.HasPrefix(line, "INCIDENT ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

var keeping sync.Mutex

// keep adds a result to the file of results.
func (set *incidentSettings) keep(t *testing.T, r *incident.Result) {
	t.Helper()
	if set.results == "" {
		return
	}
	keeping.Lock()
	defer keeping.Unlock()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(set.results, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkBars fails where the machine did not do what the incident is about.
func checkBars(t *testing.T, r *incident.Result) {
	t.Helper()
	switch routers := r.RouterPages(); r.Strategy {
	case "servers":
		if r.SwapInPages < routers || r.RanUserCode < r.Routers {
			t.Errorf("%d pages were swapped in and %d processes ran; the %d routers have %d pages: that was no incident",
				r.SwapInPages, r.RanUserCode, r.Routers, routers)
		}
	case "bpfkill":
		if r.PagesOfTheKill() != 0 || r.FaultsDying != 0 || r.FaultsWoken != 0 || r.RanUserCode != 0 {
			t.Errorf("bpfkill had %d pages swapped in, with %d faults of the dying and %d of the woken, and %d processes ran; want none: %+v",
				r.PagesOfTheKill(), r.FaultsDying, r.FaultsWoken, r.RanUserCode, r.Samples)
		}
		if later := r.SwapInPages - r.PagesOfTheKill(); later != 0 {
			t.Logf("%d pages were swapped in when everybody was gone; whose they are is not known: %+v", later, r.Samples)
		}
		if all := r.Servers + r.Routers; r.Swapped != all || r.Reaped != all {
			t.Errorf("%d of %d were on swap, and %d had their memory freed early; want all", r.Swapped, all, r.Reaped)
		}
	}
}

func readIncidentSettings() (*incidentSettings, error) {
	set := &incidentSettings{results: os.Getenv("INCIDENT_RESULTS")}
	for _, number := range []struct {
		variable string
		value    *int
		standard int
	}{
		{"INCIDENT_RUNS", &set.runs, 1},
		{"INCIDENT_SERVERS", &set.servers, 128},
		{"INCIDENT_ROUTER_MIB", &set.routerMiB, 8},
		{"INCIDENT_MEMORY_MIB", &set.memoryMiB, 512},
		{"INCIDENT_CPUS", &set.cpus, 2},
	} {
		*number.value = number.standard
		if text := os.Getenv(number.variable); text != "" {
			var err error
			if *number.value, err = strconv.Atoi(text); err != nil || *number.value < 1 {
				return nil, fmt.Errorf("%s=%q: want a positive number", number.variable, text)
			}
		}
	}
	names := os.Getenv("INCIDENT_STRATEGIES")
	if names == "" {
		names = "servers,bpfkill"
	}
	if names == "all" {
		for _, s := range incident.Strategies {
			set.strategies = append(set.strategies, s.Name)
		}
		return set, nil
	}
	for _, name := range strings.Split(names, ",") {
		if _, err := incident.Lookup(name); err != nil {
			return nil, err
		}
		set.strategies = append(set.strategies, name)
	}
	return set, nil
}
