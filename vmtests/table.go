package vmtests

import "time"

// testPackage is one package whose tests run in the guests.
type testPackage struct {
	path    string
	args    []string // further -test flags
	timeout time.Duration
	// feelsFault names the test that must fail without a tripwire; empty for
	// none. With the fault injected only such tests run.
	feelsFault string
}

// programs says what runs in every guest. Timeouts are for an emulated
// machine that shares its processors with another one.
var programs = []testPackage{
	{path: "./vmtests/guest", timeout: time.Minute},
	// That the processes' own word can be trusted on this kernel. The rest of
	// storm's tests are about storm, not about kernels.
	{path: "./internal/storm", args: []string{"-test.run=TestMarksTellWhoWoke|TestKernelWakes|TestSwapOut|TestKeepOnly|TestProcessesShed"}, timeout: 10 * time.Minute},
	{path: "./internal/window", timeout: 20 * time.Minute},
	{path: "./internal/loader", timeout: 15 * time.Minute, feelsFault: "TestTripwireKillsWhoWakes"},
	{path: "./cmd/bpfkill", timeout: 30 * time.Minute},
}

// onRequest runs only where VMTEST_PACKAGES names it: it wants 2 GiB.
var onRequest = []testPackage{{path: "./vmtests/scale", timeout: 15 * time.Minute}}

// commands are the tools that the tests drive, and the environment variable
// that says where each is.
var commands = []struct{ path, variable string }{
	{"./cmd/bpfkill", "BPFKILL_BIN"},
	{"./cmd/wakestorm", "WAKESTORM_BIN"},
}

// modules are kernel modules that the tests need loaded: zram to swap to.
var modules = []string{"zram"}

// optionalModules are loaded where the kernel has them: until v6.11 zram asks
// for its compressor by name, and does not say so in its dependencies.
var optionalModules = []string{"lzo-rle"}

// guestEnv is the environment of every test in the guest.
var guestEnv = []string{
	"BPFKILL_VM=1",
	"PATH=/bin:/sbin:/usr/bin:/usr/sbin",
	"HOME=/root",
	"TMPDIR=/tmp",
	"TERM=dumb",
}
