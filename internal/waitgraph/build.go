package waitgraph

import (
	"cmp"
	"slices"
)

// side is one of the events that an object can give: it happens when the last
// file with this end goes.
type side struct {
	end    End
	other  End    // 0 where there is none
	suffix string // what follows the object's name in the source's
}

var (
	pipeSides = []side{{EndWrite, EndRead, ""}, {EndRead, EndWrite, " (read end)"}}
	openSides = []side{{EndOpen, 0, ""}}
)

// sides is the rule of each channel: which losses wake. pipe_release() wakes
// both of a pipe's queues when either side loses its last file while the other
// has some, so every sleeper waits on both sides, whichever queue it sleeps on.
// Where the other side has none, every file that goes wakes, but for the last.
// Of other objects the whole goes, and wakes those whom links lead to.
func (o *Object) sides() []side {
	if o.wakesItself() {
		return pipeSides
	}
	return openSides
}

// wakesItself reports whether the loss of a side wakes the object's own
// sleepers.
func (o *Object) wakesItself() bool {
	return !o.Call && (o.Channel == ChannelPipe || o.Channel == ChannelFIFO)
}

// counted is the kernel's own count of files on one side.
func (o *Object) counted(e End) int64 {
	if e == EndRead {
		return int64(o.Readers)
	}
	return int64(o.Writers)
}

// New builds the graph of a snapshot. Indexes in the snapshot must be in
// range. The result does not depend on the order of descriptors and sleepers,
// and keeps nothing of the snapshot but Processes and the objects' names.
//
// The work is linear in the snapshot, sorting aside: lists that do not arrive
// in order of process are sorted, one object at a time.
func New(s *Snapshot) *Graph {
	g := &Graph{Processes: s.Processes}
	g.indexPIDs()
	b := newBuilder(s)
	for o := range s.Objects {
		b.object(int32(o), &s.Objects[o])
	}
	if s.Kin != nil {
		newExits(b, s).all()
	}
	g.lines, g.turns = s.Lines, b.turns
	g.Sources, g.holders, g.waiters = b.sources, b.holders, b.waiters
	for i := range g.Sources {
		g.Sources[i].Holders = g.holders.row(int32(i))
		g.Sources[i].Waiters = g.waiters.row(int32(i))
	}
	g.held = transpose(g.holders, len(g.Processes))
	g.waits = transpose(g.waiters, len(g.Processes))
	return g
}

// builder turns the objects of a snapshot into sources, one at a time.
type builder struct {
	records
	descriptors []Descriptor
	processes   []Process
	alive       []bool // by process: a zombie neither holds nor waits

	objects []Object

	sources          []Source
	holders, waiters rows
	lines            [][]int32
	turns            map[int32]turns

	plain []int32 // by process: threads that sleep plainly, wherever
	// brokenTracees are who, woken by the loss of a source, stop at SIGPIPE for their tracers.
	brokenTracees []brokenTracee

	// Scratch. explained goes by file of the object explainedOf, whose first is
	// explainedFrom; seen is the last file for which a process was counted, plus one.
	explained     []int64
	explainedOf   int32 // object, plus one
	explainedFrom int32
	seen          []int32
	keys          []uint64
	gathered      []sleeper
}

type brokenTracee struct{ process, source int32 }

func newBuilder(s *Snapshot) *builder {
	b := &builder{
		descriptors: s.Descriptors,
		processes:   s.Processes,
		objects:     s.Objects,
		lines:       s.Lines,
		alive:       make([]bool, len(s.Processes)),
		plain:       make([]int32, len(s.Processes)),
		seen:        make([]int32, len(s.Processes)),
	}
	for p := range s.Processes {
		b.alive[p] = s.Processes[p].Alive()
	}
	for i := range s.Sleepers {
		if s.Sleepers[i].Via == ViaPlain {
			b.plain[s.Sleepers[i].Process]++
		}
	}
	b.records.sort(s)

	// Nearly always one side of an object has waiters that the other has not.
	watched := 0
	for o := range s.Objects {
		if b.sleeperStart[o] < b.sleeperStart[o+1] {
			watched++
		}
	}
	b.sources = make([]Source, 0, watched)
	b.waiters.list = make([]int32, 0, len(b.sleepers))
	b.holders.list = make([]int32, 0, watched+watched/8+64) // behind the end is scratch
	b.waiters.start = append(make([]int32, 0, watched+1), 0)
	b.holders.start = append(make([]int32, 0, watched+1), 0)
	return b
}

// object appends the sources of object o that somebody waits on.
func (b *builder) object(o int32, obj *Object) {
	v := b.view(o)
	if len(v.sleepers) == 0 && len(v.links) == 0 {
		return
	}
	for _, side := range obj.sides() {
		counted := obj.counted(side.end)
		if side.other != 0 && obj.counted(side.other) == 0 {
			b.eachFile(o, obj, v, side, counted)
			continue
		}
		before := len(b.sources)
		b.side(o, obj, v, side, counted, false)
		if len(b.sources) > before {
			b.stops(side, v, int32(before))
		}
		if b.linksToDeadly(v) || slices.ContainsFunc(v.sleepers, func(s sleeper) bool { return b.breaks(side, s) }) {
			b.side(o, obj, v, side, counted, true)
		}
	}
}

// maxLone bounds the waiters of all sources of one object whose other side is gone:
// each of its files wakes each sleeper. Beyond it files are left out.
const maxLone = 1 << 20

// eachFile appends a source for each file of the only side of object o that is left.
func (b *builder) eachFile(o int32, obj *Object, v view, side side, counted int64) {
	if counted < 2 {
		return
	}
	b.explain(o, v) // as a whole, before its parts are asked for
	one := v
	for f := v.files.first; f < v.files.end && int(f-v.files.first)*len(v.sleepers) < maxLone; f++ {
		if b.ends[f]&side.end != 0 {
			one.files = span{f, f + 1}
			b.side(o, obj, one, side, 1, false)
		}
	}
}

// side appends the source that is the loss of those files of object o in v that are
// on one side. The kernel counts so many.
func (b *builder) side(o int32, obj *Object, v view, side side, counted int64, deadly bool) {
	holders := b.appendHolders(side.end, v)
	sleepers := b.woken(obj, v, side, deadly)
	waiters := b.appendWaiters(holders, sleepers)
	if len(waiters) == 0 {
		return
	}
	src := Source{Channel: obj.Channel, Name: obj.Name, Deadly: deadly}
	b.explain(o, v)
	b.account(&src, counted, side.end, v)
	if len(holders) == 0 && !src.Unaccounted {
		// The side is gone, or goes without anybody's death.
		if src.Counted = counted; src.Counted == 0 {
			return
		}
		src.Unaccounted = true
	}
	if side.suffix != "" {
		src.Name += side.suffix
	}
	b.takeTurns(sleepers)
	b.add(src, holders, waiters)
}

func (b *builder) linksToDeadly(v view) bool {
	return slices.ContainsFunc(v.links, func(to int32) bool { return b.objects[to].Deadly })
}

// loses reports whether who sleeps on a pipe is sent SIGPIPE when a side of it goes.
func (s sleeper) loses(side side) bool { return s.writes && side.end == EndRead }

// breaks reports whether who sleeps on a pipe dies when a side of it goes: by SIGPIPE.
func (b *builder) breaks(side side, s sleeper) bool {
	return s.loses(side) && b.processes[s.process].AnyThread.Deadly.Has(sigPIPE)
}

// stops notes which of the sleepers that a source wakes stop at SIGPIPE.
func (b *builder) stops(side side, v view, source int32) {
	for _, s := range v.sleepers {
		if s.loses(side) && b.processes[s.process].AnyThread.Trapped.Has(sigPIPE) {
			b.brokenTracees = append(b.brokenTracees, brokenTracee{s.process, source})
		}
	}
}

// woken collects the sleepers whom the end of a side of obj wakes: those who only wake,
// or those who die of it.
func (b *builder) woken(obj *Object, v view, side side, deadly bool) []sleeper {
	b.gathered = b.gathered[:0]
	if obj.wakesItself() {
		for _, s := range v.sleepers {
			if b.breaks(side, s) == deadly {
				b.gathered = append(b.gathered, s)
			}
		}
		return b.gathered
	}
	links := v.links
	if len(links) > 1 { // the two queues of a terminal are one object's
		links = sortDistinct(slices.Clone(links))
	}
	for _, to := range links {
		if b.objects[to].Deadly == deadly {
			b.gathered = append(b.gathered, b.sleepersOf(to)...)
		}
	}
	return b.gathered
}

// takeTurns notes which lines the next source wakes, and who sleeps elsewhere.
func (b *builder) takeTurns(sleepers []sleeper) {
	if !slices.ContainsFunc(sleepers, func(s sleeper) bool { return s.line != 0 }) {
		return
	}
	var t turns
	at := make(map[int32]int) // line -> index in t.list
	for _, s := range sleepers {
		if s.line == 0 {
			t.anyway = append(t.anyway, s.process)
			continue
		}
		line := s.line - 1
		i, ok := at[line]
		if !ok {
			i = len(t.list)
			at[line] = i
			t.list = append(t.list, Turn{Line: line})
		}
		t.list[i].Wakes++
		t.list[i].PassedOn = t.list[i].PassedOn || s.passedOn
	}
	for i := range t.list { // each wake was listed with all of the line
		n := len(b.lines[t.list[i].Line])
		t.list[i].Wakes = (t.list[i].Wakes + n - 1) / n
	}
	slices.SortFunc(t.list, func(a, b Turn) int { return cmp.Compare(a.Line, b.Line) })
	t.anyway = sortDistinct(t.anyway)
	if b.turns == nil {
		b.turns = make(map[int32]turns)
	}
	b.turns[int32(len(b.sources))] = t
}

// add appends a source whose holders and waiters are already written behind
// the ends of their lists.
func (b *builder) add(src Source, holders, waiters []int32) {
	b.sources = append(b.sources, src)
	b.holders.list = b.holders.list[:len(b.holders.list)+len(holders)]
	b.holders.start = append(b.holders.start, int32(len(b.holders.list)))
	b.waiters.list = b.waiters.list[:len(b.waiters.list)+len(waiters)]
	b.waiters.start = append(b.waiters.start, int32(len(b.waiters.list)))
}

// appendHolders writes the living processes that keep a side open behind the
// end of the holders' list, without lengthening it, and returns them.
func (b *builder) appendHolders(end End, v view) []int32 {
	at := len(b.holders.list)
	list := b.holders.list
	for f := v.files.first; f < v.files.end; f++ {
		if b.ends[f]&end == 0 {
			continue
		}
		for _, e := range b.entriesOf(f) {
			if b.alive[e.process] {
				list = append(list, e.process)
			}
		}
	}
	// A poll keeps its files open even if another thread closes the
	// descriptor meanwhile.
	for _, s := range v.sleepers {
		if s.file >= v.files.first && s.file < v.files.end && b.ends[s.file]&end != 0 && b.alive[s.process] {
			list = append(list, s.process)
		}
	}
	b.holders.list = list[:at]
	return sortDistinct(list[at:])
}

// appendWaiters writes the living sleepers that are not among holders behind
// the end of the waiters' list, without lengthening it, and returns them. A
// holder cannot be woken by the last holder's death: it is one, and alive.
func (b *builder) appendWaiters(holders []int32, sleepers []sleeper) []int32 {
	at := len(b.waiters.list)
	list := b.waiters.list
	for _, s := range sleepers {
		if b.alive[s.process] {
			list = append(list, s.process)
		}
	}
	b.waiters.list = list[:at]
	waiters := sortDistinct(list[at:])
	n := 0
	for _, p := range waiters {
		for len(holders) > 0 && holders[0] < p {
			holders = holders[1:]
		}
		if len(holders) == 0 || holders[0] != p {
			waiters[n] = p
			n++
		}
	}
	return waiters[:n]
}

// sortDistinct sorts list in place and drops duplicates.
func sortDistinct(list []int32) []int32 {
	for i := 1; i < len(list); i++ {
		if list[i-1] >= list[i] {
			slices.Sort(list)
			return slices.Compact(list)
		}
	}
	return list
}
