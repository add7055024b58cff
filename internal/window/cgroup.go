package window

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/cgroup2"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// CgroupOf returns the cgroup.kill file of the smallest cgroup v2 subtree that
// contains every process. It says why when there is none: no cgroup v2, Linux
// before 5.14, or processes that only the root has in common.
func CgroupOf(procs []waitgraph.Process) (string, error) {
	mount, err := cgroup2.Mount()
	if err != nil {
		return "", err
	}
	paths := make(map[uint64]string)
	err = cgroup2.Walk(mount, func(path string, id uint64) error {
		paths[id] = strings.TrimPrefix(strings.TrimPrefix(path, mount), "/")
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("read cgroups: %w", err)
	}
	var common []string
	for i := range procs {
		path, ok := paths[procs[i].CgroupID]
		if !ok {
			return "", fmt.Errorf("the cgroup of %q, process %d, is not below %s", procs[i].Comm, procs[i].PID, mount)
		}
		parts := strings.Split(path, "/")
		if i == 0 {
			common = parts
		}
		n := 0
		for n < len(common) && n < len(parts) && common[n] == parts[n] {
			n++
		}
		common = common[:n]
	}
	if len(common) == 0 || common[0] == "" {
		return "", errors.New("the kill set has no cgroup v2 of its own: its processes share only the root cgroup")
	}
	kill := filepath.Join(mount, filepath.Join(common...), "cgroup.kill")
	if _, err := os.Stat(kill); err != nil {
		return "", fmt.Errorf("cgroup.kill is not there (Linux 5.14 or later has it): %w", err)
	}
	return kill, nil
}

// checkPopulation returns an error unless the living victims, and children that they
// forked since, are exactly the population of the subtree: cgroup.kill would kill
// everybody in it.
func (r *run) checkPopulation() error {
	dir := filepath.Dir(r.CgroupKill)
	inside := make(map[int32]string) // in which cgroup
	err := cgroup2.Walk(dir, func(path string, _ uint64) error {
		pids, err := cgroupProcs(path)
		for _, pid := range pids {
			inside[pid] = path
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the cgroup engine cannot be used: %w", err)
	}
	// In this order: of whoever is inside and was forked since that is known, but for a
	// moment in the middle of its fork.
	alive, err := r.alive()
	if err != nil {
		return err
	}
	children, err := r.kernel.Inherit(r.Known)
	if err != nil {
		return err
	}
	for i := range r.victims {
		if p, ok := alive[r.victims[i].KernelIdentity()]; ok && inside[p.PID] == "" {
			return fmt.Errorf("the cgroup engine cannot be used: %q, process %d of the kill set, is not in %q", p.Comm, p.PID, dir)
		}
		delete(alive, r.victims[i].KernelIdentity())
	}
	for _, k := range children {
		p, ok := alive[k]
		// cgroup.kill asks nobody, and spares nobody.
		if !ok || p.NamespaceInit || errors.Is(unix.Kill(int(p.PID), 0), unix.EPERM) {
			continue
		}
		delete(alive, k)
	}
	for _, p := range alive {
		if path := inside[p.PID]; path != "" {
			return fmt.Errorf("the cgroup engine cannot be used: %q, process %d in %q, is not in the kill set, or must not be signalled: cgroup.kill would kill it too",
				p.Comm, p.PID, path)
		}
	}
	if path := inside[0]; path != "" {
		return fmt.Errorf("the cgroup engine cannot be used: a process in %q is outside this pid namespace, and cgroup.kill would kill it too", path)
	}
	return nil
}

func cgroupProcs(dir string) ([]int32, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int32
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.ParseInt(f, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read %s/cgroup.procs: %w", dir, err)
		}
		pids = append(pids, int32(pid))
	}
	return pids, nil
}
