package waitgraph

// records are the snapshot's files, descriptors and sleepers sorted by object,
// so that the objects can be taken one after the other in one sweep through
// memory. Following indexes from object to file to descriptor instead would
// wait for memory at every step. Objects that wake nobody, most of them on a
// usual machine, are left out.
type records struct {
	sleeperStart []int32 // by object
	sleepers     []sleeper

	linkStart []int32 // by object
	links     []int32 // to objects with sleepers

	fileStart []int32 // by object; files are renumbered in that order
	ends      []End   // by file
	refs      []int64 // by file: the kernel's count

	entryStart []int32 // by file
	entries    []entry
}

// sleeper is a Sleeper of the object at hand; file is renumbered.
type sleeper struct {
	process, file, line int32
	via                 Via
	passedOn, writes    bool
}

// entry is a Descriptor of the file at hand. The rest of it is seldom needed.
type entry struct {
	process    int32
	descriptor int32 // index into Snapshot.Descriptors
}

// span is a range of files.
type span struct{ first, end int32 }

// view is what the snapshot has of one object.
type view struct {
	files    span
	sleepers []sleeper
	links    []int32 // objects whose sleepers wake, too
}

func (r *records) view(o int32) view {
	return view{
		files:    span{r.fileStart[o], r.fileStart[o+1]},
		sleepers: r.sleepersOf(o),
		links:    r.links[r.linkStart[o]:r.linkStart[o+1]],
	}
}

func (r *records) sleepersOf(o int32) []sleeper {
	return r.sleepers[r.sleeperStart[o]:r.sleeperStart[o+1]]
}

func (r *records) entriesOf(f int32) []entry {
	return r.entries[r.entryStart[f]:r.entryStart[f+1]]
}

func (r *records) sort(s *Snapshot) {
	watched := make([]bool, len(s.Objects))
	for i := range s.Sleepers {
		watched[s.Sleepers[i].Object] = true
	}
	r.sortLinks(s, watched)
	number := r.sortFiles(s, watched)
	r.sortSleepers(s, number)
	r.sortEntries(s, number)
}

// sortLinks keeps the links that lead to sleepers, and marks where they come
// from as watched.
func (r *records) sortLinks(s *Snapshot, watched []bool) {
	start := make([]int32, len(s.Objects)+2)
	leads := make([]bool, len(s.Links))
	for i, l := range s.Links {
		if leads[i] = watched[l.To]; leads[i] {
			start[l.From+2]++
		}
	}
	offsets(start)
	r.links = make([]int32, start[len(start)-1])
	for i, l := range s.Links {
		if leads[i] {
			r.links[start[l.From+1]] = l.To
			start[l.From+1]++
		}
	}
	r.linkStart = start[:len(s.Objects)+1]
	for i, l := range s.Links {
		watched[l.From] = watched[l.From] || leads[i]
	}
}

// sortFiles returns the new number of each file, -1 for those left out.
func (r *records) sortFiles(s *Snapshot, watched []bool) []int32 {
	number := make([]int32, len(s.Files))
	start := make([]int32, len(s.Objects)+2)
	for i := range s.Files {
		if o := s.Files[i].Object; watched[o] {
			start[o+2]++
		}
	}
	offsets(start)
	n := start[len(start)-1]
	r.ends, r.refs = make([]End, n), make([]int64, n)
	for i := range s.Files {
		f := &s.Files[i]
		number[i] = -1
		if watched[f.Object] {
			at := start[f.Object+1]
			start[f.Object+1]++
			number[i], r.ends[at], r.refs[at] = at, f.End, f.Refs
		}
	}
	r.fileStart = start[:len(s.Objects)+1]
	return number
}

func (r *records) sortSleepers(s *Snapshot, number []int32) {
	start := make([]int32, len(s.Objects)+2)
	for i := range s.Sleepers {
		start[s.Sleepers[i].Object+2]++
	}
	offsets(start)
	r.sleepers = make([]sleeper, len(s.Sleepers))
	for i := range s.Sleepers {
		from := &s.Sleepers[i]
		at := &start[from.Object+1]
		to := sleeper{from.Process, -1, from.Line, from.Via, from.PassedOn, from.Writes}
		// Another object's is a stranger that got the file's address since.
		if from.File >= 0 && s.Files[from.File].Object == from.Object {
			to.file = number[from.File]
		}
		r.sleepers[*at] = to
		*at++
	}
	r.sleeperStart = start[:len(s.Objects)+1]
}

func (r *records) sortEntries(s *Snapshot, number []int32) {
	start := make([]int32, len(r.ends)+2)
	for i := range s.Descriptors {
		if f := number[s.Descriptors[i].File]; f >= 0 {
			start[f+2]++
		}
	}
	offsets(start)
	r.entries = make([]entry, start[len(start)-1])
	for i := range s.Descriptors {
		d := &s.Descriptors[i]
		if f := number[d.File]; f >= 0 {
			r.entries[start[f+1]] = entry{d.Process, int32(i)}
			start[f+1]++
		}
	}
	r.entryStart = start[:len(r.ends)+1]
}
