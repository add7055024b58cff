package storm

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Topology is one way in which processes wait for each other.
type Topology struct {
	Name    string
	Summary string
	// Unit is what [Options.Processes] counts.
	Unit string
	// Outcome says what a kill of every smtpserver does, and to whom.
	Outcome string
	// Channel is what the wakes come through: one of pipe, fifo, unix, tcp, pty,
	// child, pidfd, parent-death, lock, futex, signal and other, as in bpfkill's
	// reports. Where nobody wakes it is what one might think they came through.
	Channel string
	// Quiet is set where nobody wakes when every smtpserver dies.
	Quiet bool
	// Unpredictable says why nothing in the kernel's state tells beforehand that
	// the waiters wake, or how many of them; empty where something does.
	Unpredictable string
	// Unaccounted is set where a snapshot can tell that each of those who wake waits
	// for something of which it finds no holder.
	Unaccounted bool
	// Cascade is set where the deaths wake one of the waiters, and each that
	// wakes wakes the next.
	Cascade bool
	// Late is set where the wakes come by a timer or a worker of the kernel's,
	// some time after the deaths.
	Late bool
	// Uncharged is set where it is not the dying who wake, but who kills or reaps them, or
	// a lock of the kernel's own that they held.
	Uncharged bool
	// Mutual is set where members wait on each other, so that no order of
	// signals is free of violations.
	Mutual bool
	// Restless is set where members never stop running and forking: such a
	// storm is ready, but not asleep, and processes outside [Storm.Processes]
	// come and go under its members.
	Restless bool

	build func(b *builder, n int)
	// needs reports what the machine or the caller lacks; nil needs nothing.
	needs func() error
	// regroups is set where members leave the storm's process group.
	regroups bool
}

// Supported returns nil if the topology can be staged here, or an error that
// names what is missing and since which kernel there is such a thing.
func (t *Topology) Supported() error {
	if t.needs == nil {
		return nil
	}
	if err := t.needs(); err != nil {
		return fmt.Errorf("topology %s: %w", t.Name, err)
	}
	return nil
}

// Topologies are all there are, by name, for tests to iterate over.
var Topologies = slices.Concat(
	pipeTopologies,
	epollTopologies,
	endTopologies,
	ioUringTopologies,
	unixTopologies,
	childTopologies,
	orphanTopologies,
	threadTopologies,
	ttyTopologies,
	lockTopologies,
	futexTopologies,
	ipcTopologies,
	ptraceTopologies,
	supervisorTopologies,
	eventTopologies,
	tcpTopologies,
	incidentTopologies,
)

// Lookup finds a topology by name.
func Lookup(name string) (*Topology, error) {
	names := make([]string, len(Topologies))
	for i := range Topologies {
		if Topologies[i].Name == name {
			return &Topologies[i], nil
		}
		names[i] = Topologies[i].Name
	}
	return nil, fmt.Errorf("unknown topology %q: one of %s", name, strings.Join(names, ", "))
}

// needLinux asks for a release of the kernel where nothing else tells of a feature.
func needLinux(major, minor int, feature string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	var has, hasMinor int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &has, &hasMinor); err != nil {
		return fmt.Errorf("kernel release %q: %w", release, err)
	}
	if has < major || has == major && hasMinor < minor {
		return fmt.Errorf("%s: since Linux %d.%d", feature, major, minor)
	}
	return nil
}
