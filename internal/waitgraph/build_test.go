package waitgraph

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// people are n processes that sleep, with pids from 100.
func people(n int) []Process {
	list := make([]Process, n)
	for p := range list {
		list[p] = Process{Identity: Identity{PID: int32(100 + p), StartNS: uint64(p)},
			KernelPID: int32(100 + p), Comm: "p", State: 'S', Threads: 1}
	}
	return list
}

// open is descriptor fd of process p's own table.
func open(p, file, fd int32) Descriptor {
	return Descriptor{Process: p, File: file, Table: p, FD: fd}
}

func shared(p, file, table, fd int32) Descriptor {
	return Descriptor{Process: p, File: file, Table: table, TableShared: true, FD: fd}
}

func asleep(p int32, via Via) Sleeper { return Sleeper{Process: p, Via: via, File: -1} }

func writes(p int32) Sleeper { return Sleeper{Process: p, Via: ViaPlain, File: -1, Writes: true} }

func polls(p, file int32) Sleeper { return Sleeper{Process: p, Via: ViaPoll, File: file} }

func zombie(s *Snapshot, p int) { s.Processes[p].State, s.Processes[p].Threads = 'Z', 1 }

// TestSources has one row for each rule of who holds, who waits, and what
// adds up. File 0 is the write end and file 1 the read end of one pipe, unless
// a row says otherwise; process 0 has the write end.
func TestSources(t *testing.T) {
	const w, r = "pipe:[7]", "pipe:[7] (read end)"
	accounted := func(name string, holders, waiters []int32) Source {
		return Source{Channel: ChannelPipe, Name: name, Holders: holders, Waiters: waiters}
	}
	short := func(s Source, found, counted int64) Source {
		s.Unaccounted, s.Found, s.Counted = true, found, counted
		return s
	}
	for _, test := range []struct {
		name        string
		object      Object
		files       []File
		descriptors []Descriptor
		sleepers    []Sleeper
		change      func(*Snapshot)
		want        []Source
	}{
		{name: "reader asleep on the writer", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{accounted(w, []int32{0}, []int32{1})}},
		{name: "writer asleep on the reader, with the pipe full", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(0, ViaPlain)},
			want: []Source{accounted(r, []int32{1}, []int32{0})}},
		{name: "one of two writers dies of SIGPIPE", object: Object{Readers: 1, Writers: 2},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0), open(2, 0, 1)},
			sleepers:    []Sleeper{writes(0), writes(2)},
			change:      func(s *Snapshot) { s.Processes[2].AnyThread.Deadly = SignalSet(0).With(sigPIPE) },
			want: []Source{
				accounted(r, []int32{1}, []int32{0}),
				{Channel: ChannelPipe, Name: r, Holders: []int32{1}, Waiters: []int32{2}, Deadly: true},
			}},
		{name: "who waits to read does not die of it", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			change: func(s *Snapshot) { s.Processes[1].AnyThread.Deadly = SignalSet(0).With(sigPIPE) },
			want:   []Source{accounted(w, []int32{0}, []int32{1})}},
		{name: "a FIFO works like a pipe", object: Object{Channel: ChannelFIFO, Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{{Channel: ChannelFIFO, Name: w, Holders: []int32{0}, Waiters: []int32{1}}}},
		{name: "no rule for the channel yet", object: Object{Channel: ChannelTCP, Writers: 1},
			files: []File{{End: EndWrite, Refs: 1}}, descriptors: []Descriptor{open(0, 0, 1)},
			sleepers: []Sleeper{asleep(1, ViaPlain)}},
		{name: "nobody asleep", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 9}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}},
		{name: "lists ascend without duplicates, whoever sleeps how", object: Object{Readers: 1, Writers: 1},
			files: []File{{End: EndWrite, Refs: 3}, {End: EndRead, Refs: 3}},
			descriptors: []Descriptor{open(2, 0, 1), open(0, 0, 5), open(0, 0, 1),
				open(4, 1, 0), open(1, 1, 0), open(3, 1, 0)},
			sleepers: []Sleeper{asleep(4, ViaEpoll), asleep(1, ViaOther), asleep(3, ViaPlain), asleep(4, ViaPlain)},
			want:     []Source{accounted(w, []int32{0, 2}, []int32{1, 3, 4})}},
		{name: "a sleeper that holds both ends is woken by neither", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 2}},
			descriptors: []Descriptor{open(0, 0, 1), open(0, 1, 0), open(1, 0, 1), open(1, 1, 0)},
			sleepers:    []Sleeper{asleep(0, ViaPlain), asleep(1, ViaPlain)}},
		{name: "an epoll set may outlive its own descriptor: both sides wake it", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(2, ViaEpoll)},
			want: []Source{accounted(w, []int32{0}, []int32{2}), accounted(r, []int32{1}, []int32{2})}},
		{name: "a file open for both holds both sides", object: Object{Channel: ChannelFIFO, Readers: 1, Writers: 1},
			files: []File{{End: EndRead | EndWrite, Refs: 1}}, descriptors: []Descriptor{open(0, 0, 3)},
			sleepers: []Sleeper{asleep(1, ViaEpoll)},
			want: []Source{{Channel: ChannelFIFO, Name: w, Holders: []int32{0}, Waiters: []int32{1}},
				{Channel: ChannelFIFO, Name: r, Holders: []int32{0}, Waiters: []int32{1}}}},
		{name: "another writer's file was not found", object: Object{Readers: 1, Writers: 2},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{short(accounted(w, []int32{0}, []int32{1}), 1, 2)}},
		{name: "no writer was found, but there is one", object: Object{Readers: 1, Writers: 1},
			files: []File{{End: EndRead, Refs: 1}}, descriptors: []Descriptor{open(1, 0, 0)},
			sleepers: []Sleeper{asleep(1, ViaPlain)},
			want:     []Source{short(accounted(w, nil, []int32{1}), 0, 1)}},
		{name: "a FIFO whose writers are all gone, or never came", object: Object{Readers: 1},
			files: []File{{End: EndRead, Refs: 1}}, descriptors: []Descriptor{open(1, 0, 0)},
			sleepers: []Sleeper{asleep(1, ViaPlain)}},
		{name: "a FIFO without writers: each reader that goes wakes the others", object: Object{Readers: 3},
			files:       []File{{End: EndRead, Refs: 1}, {End: EndRead, Refs: 2}, {End: EndRead, Refs: 2}},
			descriptors: []Descriptor{open(0, 0, 0), open(1, 1, 0), open(2, 2, 0), open(3, 2, 0)},
			sleepers:    []Sleeper{polls(1, 1), asleep(2, ViaPlain), asleep(4, ViaPlain)},
			want: []Source{accounted(r, []int32{0}, []int32{1, 2, 4}), accounted(r, []int32{1}, []int32{2, 4}),
				accounted(r, []int32{2, 3}, []int32{1, 4})}},
		{name: "the same with another thread in a call on such a file", object: Object{Readers: 2},
			files:       []File{{End: EndRead, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{shared(0, 0, 0, 0), open(1, 1, 0)},
			sleepers:    []Sleeper{asleep(0, ViaPlain), asleep(1, ViaPlain)},
			want:        []Source{accounted(r, []int32{0}, []int32{1}), accounted(r, []int32{1}, []int32{0})}},
		{name: "the same with a file in flight", object: Object{Readers: 2},
			files:       []File{{End: EndRead, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 0), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{short(accounted(r, []int32{0}, []int32{1}), 1, 2)}},
		{name: "the file has a reference in flight", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{short(accounted(w, []int32{0}, []int32{1}), 1, 2)}},
		{name: "the other side's references do not matter", object: Object{Readers: 9, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 9}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{accounted(w, []int32{0}, []int32{1})}},
		{name: "two descriptors in one table are two references", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 3), open(0, 0, 5), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{accounted(w, []int32{0}, []int32{1})}},
		{name: "one entry of a shared table is one reference, with two holders", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{shared(0, 0, 0, 1), shared(2, 0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{short(accounted(w, []int32{0, 2}, []int32{1}), 1, 2)}},
		{name: "fewer references than found is fine", object: Object{Readers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(2, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			want: []Source{accounted(w, []int32{0, 2}, []int32{1})}},
		{name: "poll holds a reference for each entry", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 3}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{polls(0, 0), polls(0, 0), asleep(1, ViaPlain)},
			want: []Source{accounted(w, []int32{0}, []int32{1}), accounted(r, []int32{1}, []int32{0})}},
		{name: "poll explains its own file only", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 2}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{polls(1, 1)},
			want: []Source{short(accounted(w, []int32{0}, []int32{1}), 1, 2)}},
		{name: "a poll alone holds the file, after close by another thread", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(1, 1, 0)}, sleepers: []Sleeper{polls(0, 0), asleep(1, ViaPlain)},
			want: []Source{accounted(w, []int32{0}, []int32{1}), accounted(r, []int32{1}, []int32{0})}},
		{name: "a blocked write with a shared table holds a reference", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 2}},
			descriptors: []Descriptor{shared(0, 0, 0, 1), shared(1, 1, 1, 0)},
			sleepers:    []Sleeper{asleep(0, ViaPlain), asleep(1, ViaPlain)},
			want:        []Source{accounted(w, []int32{0}, []int32{1}), accounted(r, []int32{1}, []int32{0})}},
		{name: "a reference for each blocked thread, once however many descriptors", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 5}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{shared(0, 0, 0, 1), shared(0, 0, 0, 2), open(1, 1, 0)},
			sleepers:    []Sleeper{asleep(0, ViaPlain), asleep(0, ViaPlain), asleep(1, ViaPlain)},
			want:        []Source{short(accounted(w, []int32{0}, []int32{1}), 4, 5), accounted(r, []int32{1}, []int32{0})}},
		{name: "an epoll wait holds no reference", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{shared(0, 0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(0, ViaEpoll), asleep(1, ViaPlain)},
			want: []Source{short(accounted(w, []int32{0}, []int32{1}), 1, 2), accounted(r, []int32{1}, []int32{0})}},
		{name: "so may one with a shared table that is blocked elsewhere, as in a splice", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{shared(0, 0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			change: func(s *Snapshot) {
				s.Objects = append(s.Objects, Object{})
				s.Sleepers = append(s.Sleepers, Sleeper{Object: 1, Process: 0, Via: ViaPlain, File: -1})
			},
			want: []Source{accounted(w, []int32{0}, []int32{1})}},
		{name: "a table of its own needs no reference for a blocked write", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(0, ViaPlain), asleep(1, ViaPlain)},
			want: []Source{short(accounted(w, []int32{0}, []int32{1}), 1, 2), accounted(r, []int32{1}, []int32{0})}},
		{name: "a zombie waits on nothing", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			change: func(s *Snapshot) { zombie(s, 1) }},
		{name: "a zombie holds nothing, but its reference was seen", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 2}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(2, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			change: func(s *Snapshot) { zombie(s, 0) },
			want:   []Source{accounted(w, []int32{2}, []int32{1})}},
		{name: "only zombies held it", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			change: func(s *Snapshot) { zombie(s, 0) },
			want:   []Source{short(accounted(w, nil, []int32{1}), 0, 1)}},
		{name: "a dead leader whose threads live on", object: Object{Readers: 1, Writers: 1},
			files:       []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}},
			descriptors: []Descriptor{open(0, 0, 1), open(1, 1, 0)}, sleepers: []Sleeper{asleep(1, ViaPlain)},
			change: func(s *Snapshot) { s.Processes[0].State, s.Processes[0].Threads = 'Z', 2 },
			want:   []Source{accounted(w, []int32{0}, []int32{1})}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &Snapshot{Processes: people(5), Objects: []Object{test.object}, Files: test.files,
				Descriptors: test.descriptors, Sleepers: test.sleepers}
			s.Objects[0].Name = w
			if s.Objects[0].Channel == ChannelOther {
				s.Objects[0].Channel = ChannelPipe
			}
			if test.change != nil {
				test.change(s)
			}
			g := New(s)
			for i := range g.Sources { // nil and empty are the same here
				if len(g.Sources[i].Holders) == 0 {
					g.Sources[i].Holders = nil
				}
			}
			if len(g.Sources)+len(test.want) > 0 && !reflect.DeepEqual(g.Sources, test.want) {
				t.Errorf("got  %+v\nwant %+v", g.Sources, test.want)
			}
		})
	}
}

// TestRowsAgree builds random snapshots of many objects whose records arrive
// shuffled, and holds the graph's four views of them against each other and
// against what was put in.
func TestRowsAgree(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		n, objects := 1+r.IntN(12), r.IntN(30)
		s := &Snapshot{Processes: people(n)}
		type pair struct{ process, object int32 }
		holds, sleeps := map[pair]bool{}, map[pair]bool{}
		for o := range int32(objects) {
			s.Objects = append(s.Objects, Object{Channel: ChannelPipe, Name: fmt.Sprint(o), Readers: 1, Writers: 1})
			s.Files = append(s.Files, File{Object: o, End: EndWrite})
			for range r.IntN(5) {
				p := int32(r.IntN(n))
				holds[pair{p, o}] = true
				s.Descriptors = append(s.Descriptors, open(p, o, int32(len(s.Descriptors))))
			}
			for range r.IntN(5) {
				p := int32(r.IntN(n))
				sleeps[pair{p, o}] = true
				s.Sleepers = append(s.Sleepers, Sleeper{Object: o, Process: p, Via: ViaEpoll, File: -1})
			}
		}
		for o := range int32(objects) { // whoever sleeps there has the read end
			s.Files = append(s.Files, File{Object: o, End: EndRead})
		}
		for at := range sleeps {
			s.Descriptors = append(s.Descriptors, open(at.process, int32(objects)+at.object, int32(len(s.Descriptors))))
		}
		r.Shuffle(len(s.Files), func(i, j int) {
			s.Files[i], s.Files[j] = s.Files[j], s.Files[i]
			for k := range s.Descriptors {
				switch d := &s.Descriptors[k]; d.File {
				case int32(i):
					d.File = int32(j)
				case int32(j):
					d.File = int32(i)
				}
			}
		})
		r.Shuffle(len(s.Descriptors), func(i, j int) {
			s.Descriptors[i], s.Descriptors[j] = s.Descriptors[j], s.Descriptors[i]
		})
		r.Shuffle(len(s.Sleepers), func(i, j int) { s.Sleepers[i], s.Sleepers[j] = s.Sleepers[j], s.Sleepers[i] })

		g := New(s)
		conditions := 0
		for i := range g.Sources {
			var o int32
			if _, err := fmt.Sscan(g.Sources[i].Name, &o); err != nil {
				t.Fatal(err)
			}
			src := &g.Sources[i]
			if !reflect.DeepEqual(src.Holders, g.Holders(int32(i))) || !reflect.DeepEqual(src.Waiters, g.Waiters(int32(i))) {
				t.Fatalf("source %d: %+v, rows %v and %v", i, src, g.Holders(int32(i)), g.Waiters(int32(i)))
			}
			conditions += len(src.Waiters)
			for p := range int32(n) {
				at := pair{p, o}
				want := [2]bool{holds[at], sleeps[at] && !holds[at]}
				bySource := [2]bool{contains(src.Holders, p), contains(src.Waiters, p)}
				byProcess := [2]bool{contains(g.Held(p), int32(i)), contains(g.Waits(p), int32(i))}
				if bySource != want || byProcess != want {
					t.Fatalf("process %d at object %d: holds and waits %v, by source %v, by process %v", p, o, want, bySource, byProcess)
				}
			}
		}
		if g.Conditions() != conditions {
			t.Fatalf("%d conditions, counted %d", g.Conditions(), conditions)
		}
		for at := range sleeps { // whoever can be woken has a source
			if !holds[at] && len(g.Waits(at.process)) == 0 {
				t.Fatalf("process %d sleeps on object %d and waits on nothing", at.process, at.object)
			}
		}
	}
}

// contains is true when an ascending list without duplicates has v.
func contains(list []int32, v int32) bool {
	found := false
	for i, x := range list {
		if i > 0 && list[i-1] >= x {
			panic(fmt.Sprintf("%v does not ascend", list))
		}
		found = found || x == v
	}
	return found
}

func TestProcesses(t *testing.T) {
	s := &Snapshot{Processes: []Process{
		{Identity: Identity{PID: 300, StartNS: 10}, State: 'S', SwapBytes: 4096},
		{Identity: Identity{PID: 20, StartNS: 20}, PPID: 300, State: 'S'}, // pids wrapped round
		{Identity: Identity{PID: 21, StartNS: 30}, PPID: 20, State: 'S'},
		{Identity: Identity{PID: 22, StartNS: 40}, PPID: 20, State: 'S'},
		{Identity: Identity{PID: 23, StartNS: 50}, PPID: 999, State: 'S'}, // parent not visible
		{Identity: Identity{PID: 24, StartNS: 60}, PPID: 25, State: 'S'},
		{Identity: Identity{PID: 25, StartNS: 70}, PPID: 1, State: 'S'}, // younger than its "child"
		{Identity: Identity{PID: 26, StartNS: 80}, PPID: 26, State: 'S'},
		{Identity: Identity{PID: 27, StartNS: 90}, State: 'S'},
		{Identity: Identity{PID: 27, StartNS: 95}, State: 'S'}, // reused under the snapshot
		{State: 'S'}, // outside the namespace
	}}
	g := New(s)
	for p, want := range []int32{-1, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1} {
		if got := g.Parent(int32(p)); got != want {
			t.Errorf("parent of %d is %d, want %d", p, got, want)
		}
	}
	for pid, want := range map[int32]int32{300: 0, 20: 1, 22: 3, 27: 9, 0: -1, 1: -1, 28: -1, 1000: -1} {
		if got, ok := g.Index(pid); got != want || ok != (want >= 0) {
			t.Errorf("pid %d is process %d, %v, want %d", pid, got, ok, want)
		}
	}
	if g.Cost(0) != 4097 || g.Cost(1) != 1 {
		t.Errorf("costs %d and %d, want 4097 and 1", g.Cost(0), g.Cost(1))
	}
}

// TestFileOfAnotherObject: the kernel gives the address of a file that is closed to the
// next, and a snapshot takes time.
func TestFileOfAnotherObject(t *testing.T) {
	pipe := func(name string) Object { return Object{Channel: ChannelPipe, Name: name, Readers: 1, Writers: 1} }
	s := &Snapshot{
		Processes: people(2),
		Objects:   []Object{pipe("pipe:[1]"), pipe("pipe:[2]")},
		Files: []File{{Object: 0, End: EndWrite, Refs: 1}, {Object: 0, End: EndRead, Refs: 1},
			{Object: 1, End: EndWrite, Refs: 1}, {Object: 1, End: EndRead, Refs: 1}},
		Descriptors: []Descriptor{open(0, 0, 1), open(0, 1, 2), open(0, 2, 3), open(1, 3, 0)},
		Sleepers: []Sleeper{{Object: 0, Process: 1, Via: ViaPlain, File: -1},
			{Object: 1, Process: 1, Via: ViaPoll, File: 0}},
	}
	for _, src := range New(s).Sources {
		if src.Unaccounted || !slices.Equal(src.Holders, []int32{0}) || !slices.Equal(src.Waiters, []int32{1}) {
			t.Errorf("%+v", src)
		}
	}
}
