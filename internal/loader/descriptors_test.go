package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// openFIFO opens a new FIFO in each of the given modes.
func openFIFO(t *testing.T, modes ...int) []*os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, mode := range modes {
		fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), path)
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

// ends lists the ends of this process's descriptors of one object, by fd.
func (v *view) ends(t *testing.T, name string) map[int32]waitgraph.End {
	t.Helper()
	o, self := v.object(name), v.pids[os.Getpid()]
	out := map[int32]waitgraph.End{}
	for _, d := range v.Descriptors {
		if d.Process == self && v.Files[d.File].Object == o {
			out[d.FD] = v.Files[d.File].End
		}
	}
	return out
}

func inodeOf(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestDescriptorsOfPipesAndFIFOs(t *testing.T) {
	nstest.Require(t)
	p := newPipe(t)
	// O_RDWR first: it is the one that does not block without a peer.
	fifo := openFIFO(t, unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY, unix.O_PATH)
	fifoName := fmt.Sprintf("fifo:[%d]", inodeOf(t, fifo[0]))
	v := take(t)

	for _, test := range []struct {
		name             string
		channel          waitgraph.Channel
		readers, writers int32
		ends             map[int32]waitgraph.End
	}{
		{p.inode, waitgraph.ChannelPipe, 1, 1, map[int32]waitgraph.End{
			int32(p.r.Fd()): waitgraph.EndRead, int32(p.w.Fd()): waitgraph.EndWrite}},
		{fifoName, waitgraph.ChannelFIFO, 2, 2, map[int32]waitgraph.End{ // O_PATH is no end
			int32(fifo[0].Fd()): waitgraph.EndRead | waitgraph.EndWrite,
			int32(fifo[1].Fd()): waitgraph.EndRead, int32(fifo[2].Fd()): waitgraph.EndWrite}},
	} {
		o := v.object(test.name)
		if o < 0 {
			t.Errorf("%s is not in the snapshot", test.name)
			continue
		}
		if got := v.Objects[o]; got.Channel != test.channel || got.Readers != test.readers || got.Writers != test.writers {
			t.Errorf("%+v, want channel %v with %d readers and %d writers", got, test.channel, test.readers, test.writers)
		}
		if got := v.ends(t, test.name); fmt.Sprint(got) != fmt.Sprint(test.ends) {
			t.Errorf("%s: descriptors %v, want %v", test.name, got, test.ends)
		}
	}
}

// TestReferencesAddUp: whatever way a file is shared, the references that the
// kernel counts are those that the snapshot explains, so that the condition is
// accounted for and has the right holders.
func TestReferencesAddUp(t *testing.T) {
	nstest.Require(t)
	self := os.Getpid()
	for _, test := range []struct {
		name string
		// stage returns the pipe, the holders of its write end, its waiters.
		stage func(t *testing.T, p *testPipe) (holders, waiters []int)
	}{
		{"one writer, one single-threaded reader", func(t *testing.T, p *testPipe) ([]int, []int) {
			return []int{self}, []int{reader(t, p, "read", unix.SYS_READ)}
		}},
		{"dup in one table", func(t *testing.T, p *testPipe) ([]int, []int) {
			for range 3 {
				fd, err := unix.FcntlInt(p.w.Fd(), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(fd) })
			}
			return []int{self}, []int{reader(t, p, "read", unix.SYS_READ)}
		}},
		{"inherited by children", func(t *testing.T, p *testPipe) ([]int, []int) {
			a, b := start(t, "idle", nil, p.w), start(t, "idle", nil, p.w)
			a.says(t)
			b.says(t)
			return []int{self, a.PID, b.PID}, []int{reader(t, p, "read", unix.SYS_READ)}
		}},
		{"CLONE_FILES", func(t *testing.T, p *testPipe) ([]int, []int) {
			a := start(t, "share", nil, p.w)
			var twin int
			fmt.Sscan(a.says(t), &twin)
			return []int{self, a.PID, twin}, []int{reader(t, p, "read", unix.SYS_READ)}
		}},
		{"poll holds references of its own", func(t *testing.T, p *testPipe) ([]int, []int) {
			return []int{self}, []int{reader(t, p, "poll", unix.SYS_PPOLL), reader(t, p, "poll", unix.SYS_PPOLL)}
		}},
		{"several readers of one file", func(t *testing.T, p *testPipe) ([]int, []int) {
			return []int{self}, []int{reader(t, p, "read", unix.SYS_READ), reader(t, p, "read", unix.SYS_READ), reader(t, p, "poll", unix.SYS_PPOLL)}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPipe(t)
			holders, waiters := test.stage(t, p)
			p.r.Close() // else this process keeps the read end, which is no holder of what is waited on
			v := take(t)
			checkSource(t, v, p.inode, holders, waiters)
			// The read end adds up as well, though nobody waits for it here.
			o := v.object(p.inode)
			explained := map[int32]int64{}
			for _, d := range v.Descriptors {
				if v.Files[d.File].Object == o && v.Files[d.File].End == waitgraph.EndRead {
					explained[d.File]++
					if d.TableShared {
						explained[d.File]++ // the read(2) in flight
					}
				}
			}
			for _, s := range v.Sleepers {
				if s.Object == o && s.Via == waitgraph.ViaPoll {
					if s.File < 0 {
						t.Error("a poll's own file reference is unknown")
					}
				}
			}
			for f, n := range explained {
				if v.Files[f].Refs < 1 || v.Files[f].Refs > n+int64(len(waiters)) {
					t.Errorf("read end: the kernel counts %d references, %d are explained", v.Files[f].Refs, n)
				}
			}
		})
	}
}

// reader starts a process that waits for the end of a pipe.
func reader(t *testing.T, p *testPipe, role string, call uintptr) int {
	t.Helper()
	r := start(t, role, nil, p.r)
	r.asleep(t, call)
	return r.PID
}

func checkSource(t *testing.T, v *view, name string, holders, waiters []int) {
	t.Helper()
	src := v.source(name)
	if src == nil {
		t.Fatalf("nobody waits on %s: %+v", name, v.asleepOn(name))
	}
	if src.Unaccounted {
		t.Errorf("%s: %d references found, the kernel counts %d", name, src.Found, src.Counted)
	}
	slices.Sort(holders)
	slices.Sort(waiters)
	if got := v.pidsOf(src.Holders); !slices.Equal(got, holders) {
		t.Errorf("holders %v, want %v", got, holders)
	}
	if got := v.pidsOf(src.Waiters); !slices.Equal(got, waiters) {
		t.Errorf("waiters %v, want %v", got, waiters)
	}
}

func (v *view) pidsOf(processes []int32) []int {
	var pids []int
	for _, p := range processes {
		pids = append(pids, int(v.Processes[p].PID))
	}
	slices.Sort(pids)
	return pids
}

// TestStormsAddUp: single-threaded processes that fork inherits to.
func TestStormsAddUp(t *testing.T) {
	nstest.Require(t)
	for _, topology := range []string{"smtp", "fanin", "mutual", "chain", "epoll", "poll"} {
		t.Run(topology, func(t *testing.T) {
			s := stage(t, storm.Options{Topology: topology, Processes: 6})
			v := take(t)
			g := waitgraph.New(v.Snapshot)
			got := map[int][]int{}
			mine := map[int]bool{}
			for _, m := range s.Processes() {
				mine[m.PID] = true
			}
			for _, src := range g.Sources {
				// Others sleep here as well: whoever runs the tests, for example.
				if !slices.ContainsFunc(v.pidsOf(src.Waiters), func(pid int) bool { return mine[pid] }) {
					continue
				}
				if src.Unaccounted {
					t.Errorf("%s: %d references found, the kernel counts %d", src.Name, src.Found, src.Counted)
				}
				for _, w := range v.pidsOf(src.Waiters) {
					got[w] = append(got[w], v.pidsOf(src.Holders)...)
				}
			}
			for _, m := range s.Processes() {
				want := slices.Clone(m.WaitsOn)
				slices.Sort(want)
				if !slices.Equal(got[m.PID], want) {
					t.Errorf("%s %d waits on %v, want %v", m.Role, m.PID, got[m.PID], want)
				}
			}
		})
	}
}

// TestDescriptorInFlight: a write end that lies in a socket keeps the pipe open
// whoever dies. Nothing shows it but the kernel's counts.
func TestDescriptorInFlight(t *testing.T) {
	const nobody, here, elsewhere = "nobody", "this process", "a process with one thread, asleep in a read"
	for _, keeps := range []string{nobody, here, elsewhere} {
		t.Run("still open in "+keeps, func(t *testing.T) {
			nstest.Require(t)
			p := newPipe(t)
			waiter := reader(t, p, "read", unix.SYS_READ)
			p.r.Close()
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[0])
			defer unix.Close(pair[1])
			if err := unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(int(p.w.Fd())), nil, 0); err != nil {
				t.Fatal(err)
			}
			var holders []int
			switch keeps {
			case here:
				holders = []int{os.Getpid()}
			case elsewhere:
				quiet := newPipe(t)
				parent := start(t, "lone", nil, p.w, quiet.r)
				pid, err := strconv.Atoi(parent.says(t))
				must(t, err)
				eventually(t, "it is asleep", func() bool { return asleepIn(pid, pid, unix.SYS_READ) })
				holders = []int{pid}
				fallthrough
			default:
				p.w.Close()
			}
			v := take(t)
			src := v.source(p.inode)
			if src == nil {
				t.Fatal("nobody waits on the pipe")
			}
			if !src.Unaccounted || src.Counted <= src.Found {
				t.Errorf("%+v, want it unaccounted", src)
			}
			if got := v.pidsOf(src.Holders); !slices.Equal(got, holders) {
				t.Errorf("holders %v, want %v", got, holders)
			}
			if got := v.pidsOf(src.Waiters); !slices.Equal(got, []int{waiter}) {
				t.Errorf("waiters %v, want %d", got, waiter)
			}
		})
	}
}
