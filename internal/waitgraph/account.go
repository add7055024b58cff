package waitgraph

import "slices"

// account compares what the snapshot found of one side with what the kernel
// counts: first the files on that side, then the references of each. It marks
// src at the first that does not add up. Finding more than the kernel counts
// is no fault: descriptors may be closed while the snapshot looks.
func (b *builder) account(src *Source, counted int64, end End, v view) {
	found := int64(0)
	for f := v.files.first; f < v.files.end; f++ {
		if b.ends[f]&end != 0 {
			found++
		}
	}
	if counted > found {
		src.Unaccounted, src.Found, src.Counted = true, found, counted
		return
	}
	for f := v.files.first; f < v.files.end; f++ {
		if explained := b.explained[f-b.explainedFrom]; b.ends[f]&end != 0 && b.refs[f] > explained {
			src.Unaccounted, src.Found, src.Counted = true, explained, b.refs[f]
			return
		}
	}
}

// explain says, for each of an object's files, how many references to it the
// snapshot explains: descriptors, polls, and system calls in flight. It does so once
// for an object: v is the whole of it the first time.
func (b *builder) explain(o int32, v view) {
	if b.explainedOf == o+1 {
		return
	}
	b.explainedOf, b.explainedFrom = o+1, v.files.first
	b.explained = append(b.explained[:0], make([]int64, v.files.end-v.files.first)...)
	for _, s := range v.sleepers {
		if s.via == ViaPoll && s.file >= 0 {
			b.explained[s.file-v.files.first]++
		}
	}
	for f := v.files.first; f < v.files.end; f++ {
		entries := b.entriesOf(f)
		b.explained[f-v.files.first] += b.distinct(entries) + b.inFlight(f, entries)
	}
}

// distinct counts descriptor table entries. Processes that share a table show
// the same entry once each; it is one reference.
func (b *builder) distinct(entries []entry) int64 {
	if len(entries) < 2 {
		return int64(len(entries))
	}
	keys, ascending := b.keys[:0], true
	for _, e := range entries {
		d := &b.descriptors[e.descriptor]
		key := uint64(uint32(d.Table))<<32 | uint64(uint32(d.FD))
		ascending = ascending && (len(keys) == 0 || keys[len(keys)-1] < key)
		keys = append(keys, key)
	}
	b.keys = keys
	if !ascending {
		slices.Sort(keys)
		keys = slices.Compact(keys)
	}
	return int64(len(keys))
}

// inFlight counts the references that blocked system calls may hold on file f.
// fdget() takes one only where the descriptor table has several users; which of
// its files a sleeper is in a call on is not known, so each gets the benefit: a
// splice sleeps at one end, and a datagram's sender at its receiver's.
func (b *builder) inFlight(f int32, entries []entry) int64 {
	n := int64(0)
	for _, e := range entries {
		p := e.process
		if b.plain[p] > 0 && b.seen[p] != f+1 && b.descriptors[e.descriptor].TableShared {
			b.seen[p] = f + 1
			n += int64(b.plain[p])
		}
	}
	return n
}
