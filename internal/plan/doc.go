// Package plan chooses whom to kill and in which order, so that nobody who
// was asleep wakes before its own signal.
//
// It is pure and deterministic: the same graph and options give the same
// plan. Processes and sources are indexes into the graph they came from.
//
// # The kill set
//
// A source fires when its last holder dies. The kill set starts as the
// targets; whoever waits on a source that fires, and may be killed under the
// policy, joins it and takes its own sources along, until nothing changes.
// Each join lowers one counter for each source that the process holds, so
// reaching the fixpoint costs one visit to each holder and waiter. Whoever
// would wake and does not join is a bystander.
//
// # The order
//
// A wait condition inside the kill set says: signal the waiter before the
// last of the holders; that is, before at least one of them. The order is
// built backwards, from the last signal to the first. A process qualifies for
// the last free place when each of its conditions has a holder among those
// already placed behind it.
//
// This finds an order without violations whenever one exists. To qualify is
// monotone: placing more processes never takes the quality away, since a
// condition that has a holder behind it keeps it (the sets of placed
// processes form an antimatroid). Suppose a good order exists, and the
// construction is stuck with the set P placed and others left. Read the good
// order from its end, and take the first process q that is not in P.
// Everything behind q is in P, and each of q's conditions has a holder behind
// q in the good order, hence in P: q qualifies, and the construction was not
// stuck. So no choice among qualified processes is ever wrong, nothing is
// taken back, and one counter of unmet conditions for each process is all the
// state there is. A source is settled once, by the first of its holders that
// is placed, however many wait on it: O(processes + holders + waiters).
//
// Conditions of unaccounted sources are soft: they are taken never to fire,
// and are honoured where that costs nothing. Among qualified processes those
// without an unmet soft condition go first; by the argument above that
// choice is free, and by the same argument applied to all conditions together
// every soft condition is met whenever one order meets them all.
//
// # Knots
//
// When nothing qualifies, the rest contains processes that wait on each other,
// and some condition must be violated. The strongly connected components of
// "waits on a source held by" are found, and components that wait on nothing
// outside themselves are taken first: whichever of such a knot's members is
// placed first has an unmet condition all of whose holders are in the knot,
// so a violation there is needed whatever else is done. The member whose unmet
// conditions cost least is placed, its conditions are listed as exposed, and
// the rest of the knot follows before anything else does, members freed by
// the placement first. What is left of a knot is taken apart again in the same
// way. To place as few as possible is NP-hard (it contains minimum feedback
// vertex set), so this is a heuristic in its number of exposed conditions,
// never in whether there is one.
//
// Taking apart again after each placement could cost the square of the knot's
// size. A knot may spend a fixed multiple of its size on that, which small ones
// never exhaust; after that it goes by a heap, cheapest first, and is taken
// apart again each time that half of it is placed.
//
// # Ties
//
// Ties break by identity, which is the order of processes in a snapshot. Those
// that qualify from the start are signalled last, ascending among themselves;
// those freed by placing a process are signalled before it, by source, then
// ascending.
package plan
