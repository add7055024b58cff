package window

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// tick is how often a wait looks up for a cancelled context and children that
// were forked in the race. Exits themselves are events.
const tick = 100 * time.Millisecond

// await waits until everybody that was signalled is dead, and signals what
// forked in the race, until nobody is left or the timeout is over.
//
// Each round looks at who is alive, waits for as many of them as there are
// descriptors for, and looks again: so it neither misses nor mistakes anybody,
// however few descriptors there are.
func (r *run) await(ctx context.Context) error {
	deadline := time.Now().Add(r.Timeout)
	members := make(map[waitgraph.KernelIdentity]bool, len(r.victims))
	for i := range r.victims {
		members[r.victims[i].KernelIdentity()] = true
	}
	for _, f := range slices.Concat(r.out.Refused, r.out.Skipped) {
		delete(members, f.Process.KernelIdentity())
	}
	err := r.awaitMembers(ctx, members, deadline)
	if ctx.Err() != nil && len(r.out.Survivors) > 0 {
		r.warn("interrupted: exits are not awaited any longer")
	}
	r.out.Gone = r.out.Signalled
	planned := make(map[waitgraph.KernelIdentity]bool, len(r.victims))
	for i := range r.victims {
		planned[r.victims[i].KernelIdentity()] = true
	}
	for i := range r.out.Survivors {
		if planned[r.out.Survivors[i].KernelIdentity()] {
			r.out.Gone--
		}
	}
	return err
}

// awaitMembers waits until no member is left. It fails only at the deadline: what
// fails for want of memory may work later, for the dying give theirs back. Then
// it is not known who is gone, and all that were to die are survivors.
func (r *run) awaitMembers(ctx context.Context, members map[waitgraph.KernelIdentity]bool, deadline time.Time) error {
	swept := make(map[waitgraph.KernelIdentity]bool)
	total := len(members)
	for {
		births := r.kernel.Births()
		left, fresh, err := r.remaining(members, swept)
		if fresh > 0 || r.out.Rounds == 0 {
			r.out.Rounds++
		}
		total += fresh
		over := ctx.Err() != nil || !time.Now().Before(deadline)
		switch {
		case err != nil && over:
			r.out.Survivors = r.unknown(members)
			return fmt.Errorf("it is not known who is gone: %w", err)
		case err != nil:
			pause(ctx)
			continue
		}
		if r.Progress != nil {
			r.Progress(total-len(left), total)
		}
		// A child that was forked since may be in neither of the lists.
		if len(left) == 0 && fresh == 0 && births == r.kernel.Births() {
			return nil
		}
		if over {
			r.out.Survivors = left
			return nil
		}
		err = r.waitExits(ctx, left, deadline, func(gone int) {
			if r.Progress != nil {
				r.Progress(total-len(left)+gone, total)
			}
		})
		if err != nil {
			pause(ctx) // and look again
		}
	}
}

// stateUnknown is the state of a process of which it is not known whether it lives.
const stateUnknown = '?'

// unknown returns the members of the plan, of whom nothing is known.
func (r *run) unknown(members map[waitgraph.KernelIdentity]bool) (left []waitgraph.Process) {
	for i := range r.victims {
		if members[r.victims[i].KernelIdentity()] {
			p := r.victims[i]
			p.State = stateUnknown
			left = append(left, p)
		}
	}
	return left
}

// pause lasts a tick, if nobody cancels it.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(tick):
	}
}

// remaining returns the members that are alive, after it has signalled those
// among them that were forked in the race and not yet swept.
func (r *run) remaining(members, swept map[waitgraph.KernelIdentity]bool) (left []waitgraph.Process, fresh int, err error) {
	inherited, err := r.kernel.Inherit(r.Known)
	if err != nil {
		return nil, 0, err
	}
	isInherited := make(map[waitgraph.KernelIdentity]bool, len(inherited))
	for _, k := range inherited {
		isInherited[k] = true
		if _, seen := members[k]; !seen {
			members[k] = true
			fresh++
		}
	}
	// Room for this round: those that exited are closed, the rest reopened
	// where needed. Then identities, after the pidfds.
	alive, err := r.alive()
	if err != nil {
		return nil, fresh, err
	}
	for k, wanted := range members {
		p, ok := alive[k]
		if !wanted || !ok {
			r.pidfds.drop(k)
			members[k] = false // it does not come back
			continue
		}
		left = append(left, p)
	}
	slices.SortFunc(left, func(a, b waitgraph.Process) int { return int(a.KernelPID) - int(b.KernelPID) })
	if err := r.sweep(left, isInherited, members, swept); err != nil {
		return nil, fresh, err
	}
	return left, fresh, nil
}

// sweep signals the inherited among left, each once: the tripwire gets those
// that enter the kernel, this those that stay in user mode. Who may not be
// signalled is no member any more.
func (r *run) sweep(left []waitgraph.Process, inherited, members, swept map[waitgraph.KernelIdentity]bool) error {
	var todo []waitgraph.Process
	for i := range left {
		k := left[i].KernelIdentity()
		if inherited[k] && !swept[k] && r.pidfds.open(&left[i]) {
			todo = append(todo, left[i])
		}
	}
	if len(todo) == 0 {
		return nil
	}
	alive, err := r.alive()
	if err != nil {
		return err
	}
	for i := range todo {
		k := todo[i].KernelIdentity()
		swept[k] = true
		if _, ok := alive[k]; !ok {
			continue
		}
		err := errNamespaceInit
		if !todo[i].NamespaceInit {
			fd, _ := r.pidfds.get(&todo[i])
			err = errnoError(pidfdKill(fd))
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			r.out.Refused = append(r.out.Refused, Failure{todo[i], err})
			members[k] = false
		}
	}
	return nil
}

var errNamespaceInit = errors.New("init of a pid namespace")

// waitExits waits until all of left that fit into the descriptor limit have
// exited, the deadline is over, or a tick has passed in which nobody exited. An error
// is that it could wait for none of them.
func (r *run) waitExits(ctx context.Context, left []waitgraph.Process, deadline time.Time, progress func(gone int)) error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	defer unix.Close(ep)
	waiting, exited := 0, 0
	for i := range left {
		if !r.pidfds.open(&left[i]) {
			continue // the set is full, but others may be in it
		}
		fd, _ := r.pidfds.get(&left[i])
		if fd < 0 {
			exited++
		}
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
		if fd >= 0 && unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &ev) == nil {
			waiting++
		}
	}
	if waiting+exited == 0 && len(left) > 0 {
		return errors.New("no descriptor for a single pidfd")
	}
	events := make([]unix.EpollEvent, 256)
	for gone := 0; gone < waiting && ctx.Err() == nil; {
		wait := min(tick, time.Until(deadline))
		if wait <= 0 {
			return nil
		}
		n, err := unix.EpollWait(ep, events, int(wait.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		if n <= 0 {
			return nil // look for children forked in the race
		}
		gone += n
		progress(gone)
	}
	return nil
}

func (r *run) warn(s string) {
	if r.Warn != nil {
		r.Warn(s)
	}
}

func (r *run) detail(s string) {
	if r.Detail != nil {
		r.Detail(s)
	}
}
