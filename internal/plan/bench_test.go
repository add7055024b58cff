package plan

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// pipes builds a snapshot as the kernel would give it: processes in order,
// then their descriptors in order, each pipe and file numbered when first
// met, each reader asleep on its read end.
type pipes struct {
	snapshot waitgraph.Snapshot
	opened   [][]opening // by process
}

type opening struct {
	file int32 // 2 * pipe for the write end, + 1 for the read end
	via  waitgraph.Via
}

func newPipes(n int) *pipes {
	b := &pipes{opened: make([][]opening, n)}
	for p := range n {
		b.snapshot.Processes = append(b.snapshot.Processes, waitgraph.Process{
			Identity: waitgraph.Identity{PID: int32(2 + p), StartNS: uint64(p)},
			Comm:     "smtpserver", State: 'S', Threads: 1, KernelPID: int32(2 + p), SwapBytes: uint64(p % 7 * 4096),
		})
	}
	return b
}

// add makes a pipe from some writers to some readers.
func (b *pipes) add(pipe int32, writers, readers []int32) {
	for _, w := range writers {
		b.opened[w] = append(b.opened[w], opening{file: 2 * pipe})
	}
	for _, r := range readers {
		b.opened[r] = append(b.opened[r], opening{file: 2*pipe + 1, via: waitgraph.ViaEpoll})
	}
}

func (b *pipes) build() *waitgraph.Snapshot {
	s := &b.snapshot
	objects, files := map[int32]int32{}, map[int32]int32{}
	for p, opened := range b.opened {
		for fd, o := range opened {
			object, ok := objects[o.file/2]
			if !ok {
				object = int32(len(s.Objects))
				objects[o.file/2] = object
				s.Objects = append(s.Objects, waitgraph.Object{Channel: waitgraph.ChannelPipe,
					Name: fmt.Sprintf("pipe:[%d]", o.file/2), Readers: 1, Writers: 1})
			}
			file, ok := files[o.file]
			if !ok {
				file = int32(len(s.Files))
				files[o.file] = file
				end := waitgraph.EndWrite
				if o.file%2 == 1 {
					end = waitgraph.EndRead
				}
				s.Files = append(s.Files, waitgraph.File{Object: object, End: end})
			}
			s.Files[file].Refs++
			s.Descriptors = append(s.Descriptors, waitgraph.Descriptor{
				Process: int32(p), File: file, Table: int32(p), FD: int32(3 + fd)})
			if o.via != waitgraph.ViaPlain {
				s.Sleepers = append(s.Sleepers, waitgraph.Sleeper{
					Object: object, Process: int32(p), Via: o.via, File: -1})
			}
		}
	}
	return s
}

// everybody is all n processes as targets.
func everybody(n int) []int32 {
	targets := make([]int32, n)
	for p := range targets {
		targets[p] = int32(p)
	}
	return targets
}

// waitsOnRandom is n processes with ten wait conditions each, every one on a
// pipe of its own with one writer: as many sources as conditions.
func waitsOnRandom(n int) *waitgraph.Snapshot {
	r := rand.New(rand.NewPCG(7, uint64(n)))
	b := newPipes(n)
	for p := range int32(n) {
		for i := range int32(10) {
			b.add(p*10+i, []int32{r.Int32N(int32(n))}, []int32{p})
		}
	}
	return b.build()
}

// waitsOnEarlier is the same without a knot: a process waits on earlier ones.
func waitsOnEarlier(n int) *waitgraph.Snapshot {
	r := rand.New(rand.NewPCG(8, uint64(n)))
	b := newPipes(n)
	for p := int32(1); p < int32(n); p++ {
		for i := range int32(10) {
			b.add(p*10+i, []int32{r.Int32N(p)}, []int32{p})
		}
	}
	return b.build()
}

// mutualPairs is n processes that wait on each other two by two.
func mutualPairs(n int) *waitgraph.Snapshot {
	b := newPipes(n)
	for p := int32(0); p < int32(n); p += 2 {
		b.add(p, []int32{p}, []int32{p + 1})
		b.add(p+1, []int32{p + 1}, []int32{p})
	}
	return b.build()
}

// mutualChain is one knot of n processes, each of which waits on both of its
// neighbours: taken apart one by one it would cost the square of n.
func mutualChain(n int) *waitgraph.Snapshot {
	b := newPipes(n)
	for p := int32(0); p < int32(n-1); p++ {
		b.add(2*p, []int32{p}, []int32{p + 1})
		b.add(2*p+1, []int32{p + 1}, []int32{p})
	}
	return b.build()
}

// sharedPipe is one pipe with half of n for writers and half for readers:
// waiters times holders would be the square of n.
func sharedPipe(n int) *waitgraph.Snapshot {
	b := newPipes(n)
	all := everybody(n)
	b.add(0, all[:n/2], all[n/2:])
	b.add(1, all[n/2:], all[:n/2])
	return b.build()
}

func BenchmarkPlan(b *testing.B) {
	for _, bench := range []struct {
		name  string
		build func(n int) *waitgraph.Snapshot
	}{
		{"earlier", waitsOnEarlier},
		{"random", waitsOnRandom},
		{"pairs", mutualPairs},
		{"chain", mutualChain},
		{"shared", sharedPipe},
	} {
		for _, n := range []int{1_000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", bench.name, n), func(b *testing.B) {
				snapshot, targets := bench.build(n), everybody(n)
				b.ReportAllocs()
				for b.Loop() {
					g := waitgraph.New(snapshot)
					if p := Make(g, targets, Options{}); len(p.Order) != n {
						b.Fatalf("%d of %d processes ordered", len(p.Order), n)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/process")
			})
		}
	}
}
