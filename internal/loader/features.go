package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Requirements of the kill path.
const (
	minMajor, minMinor = 5, 10
	kernelBTF          = "/sys/kernel/btf/vmlinux"
	batchKfunc         = "bpf_send_signal_task"
	// BatchSince is the first kernel with the batch engine's kfunc
	// (commit 6280cf718db0).
	BatchSince = "6.13"
	// CgroupKillSince is the first kernel with cgroup.kill (661ee6281605).
	CgroupKillSince = "5.14"
)

// ErrUnsupported says that the kernel lacks a feature; the message names the
// first kernel that has it.
var ErrUnsupported = errors.New("not supported by this kernel")

// Kernel returns the running kernel's release, "6.18.44" for example.
func Kernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read kernel release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// CheckKernel returns an error that names what the kernel lacks for bpfkill to
// work at all: Linux 5.10 and BTF of the kernel itself.
func CheckKernel() error {
	release, err := Kernel()
	if err != nil {
		return err
	}
	if err := checkRelease(release, minMajor, minMinor); err != nil {
		return err
	}
	if _, err := os.Stat(kernelBTF); err != nil {
		return fmt.Errorf("this kernel has no BTF (%s): bpfkill needs one built with CONFIG_DEBUG_INFO_BTF", kernelBTF)
	}
	return nil
}

// checkRelease returns an error for a kernel older than the least one.
func checkRelease(release string, minMajor, minMinor int) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("cannot tell the version of kernel release %q", release)
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return fmt.Errorf("kernel %s is too old: bpfkill needs Linux %d.%d or later", release, minMajor, minMinor)
	}
	return nil
}

// atLeast reports whether the running kernel is of that version or later. Without a
// release that can be read it is taken not to be.
func atLeast(major, minor int) bool {
	release, err := Kernel()
	return err == nil && checkRelease(release, major, minor) == nil
}

// needed lists, for each capability of the kill path, those that include it.
var needed = []struct {
	name string
	any  []int
	use  string
}{
	{"CAP_BPF", []int{unix.CAP_BPF, unix.CAP_SYS_ADMIN}, "to load BPF programs"},
	{"CAP_PERFMON", []int{unix.CAP_PERFMON, unix.CAP_SYS_ADMIN}, "to read kernel memory and trace"},
	{"CAP_SYSLOG", []int{unix.CAP_SYSLOG}, "to read kernel symbol addresses"},
}

// initialUserNamespace is the inode number of the machine's own (PROC_USER_INIT_INO).
const initialUserNamespace = 0xEFFFFFFD

// CheckCapabilities returns an error that names every capability that the
// calling process lacks for snapshot, kill and measurement.
func CheckCapabilities() error {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &ns); err == nil && ns.Ino != initialUserNamespace {
		return errors.New("bpfkill runs in a user namespace, and the kernel wants CAP_BPF, CAP_PERFMON and CAP_SYSLOG " +
			"outside of every one: run it as root of the machine")
	}
	var missing []string
	for _, n := range needed {
		held := false
		for _, c := range n.any {
			ok, err := hasCapability(c)
			if err != nil {
				return err
			}
			held = held || ok
		}
		if !held {
			missing = append(missing, n.name+" ("+n.use+")")
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing %s: run bpfkill as root, with all of root's capabilities", strings.Join(missing, ", "))
	}
	return nil
}

// Capability is one that bpfkill uses.
type Capability struct {
	Name, Use    string
	Needed, Held bool
}

// useful lists the capabilities that make a kill surer where they are held.
var useful = []struct {
	name string
	cap  int
	use  string
}{
	{"CAP_KILL", unix.CAP_KILL, "to signal processes of other users"},
	{"CAP_SYS_NICE", unix.CAP_SYS_NICE, "for SCHED_FIFO and the corral"},
	{"CAP_IPC_LOCK", unix.CAP_IPC_LOCK, "to lock its own memory"},
	{"CAP_SYS_RESOURCE", unix.CAP_SYS_RESOURCE, "for more descriptors, and to be spared by the OOM killer"},
	{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, "for the corral, where /proc is mounted with hidepid="},
}

// Capabilities returns the capabilities that bpfkill uses, and which of them the
// calling thread holds.
func Capabilities() ([]Capability, error) {
	var all []Capability
	for _, n := range needed {
		c := Capability{Name: n.name, Use: n.use, Needed: true}
		for _, number := range n.any {
			held, err := hasCapability(number)
			if err != nil {
				return nil, err
			}
			c.Held = c.Held || held
		}
		all = append(all, c)
	}
	for _, u := range useful {
		held, err := hasCapability(u.cap)
		if err != nil {
			return nil, err
		}
		all = append(all, Capability{Name: u.name, Use: u.use, Held: held})
	}
	return all, nil
}

// CheckSymbols returns an error where the kernel hides its symbol addresses, or
// lacks those by which wakes are told apart.
func CheckSymbols() error {
	_, err := landmarkTable()
	return err
}

// hasCapability reports whether a capability is in the effective set of the
// calling thread.
func hasCapability(c int) (bool, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	return data[c/32].Effective&(1<<(c%32)) != 0, nil
}

// HaveBatch returns nil where the kernel has what the batch engine needs, an
// error wrapping [ErrUnsupported] where it has not, and another error where
// that could not be told.
func HaveBatch() error {
	spec, err := kernelTypes.Kernel()
	if err != nil {
		return fmt.Errorf("read kernel BTF: %w", err)
	}
	var fn *btf.Func
	switch err := spec.TypeByName(batchKfunc, &fn); {
	case errors.Is(err, btf.ErrNotFound):
		return fmt.Errorf("the batch engine needs the kfunc %s, Linux %s or later: %w", batchKfunc, BatchSince, ErrUnsupported)
	case err != nil:
		return fmt.Errorf("look up %s in kernel BTF: %w", batchKfunc, err)
	}
	return nil
}

// Prepare raises RLIMIT_MEMLOCK on kernels before 5.11, which charge BPF
// memory to it. Call it before the first New function of this package.
func Prepare() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise RLIMIT_MEMLOCK (needs CAP_SYS_RESOURCE): %w", err)
	}
	return nil
}
