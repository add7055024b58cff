package plan

// Role says why a process is in the kill set.
type Role uint8

const (
	RoleTarget    Role = iota // selected by the user
	RoleDependent             // added because the kill would wake it
)

func (r Role) String() string {
	if r == RoleDependent {
		return "dependent"
	}
	return "target"
}

// Dependents is the policy for processes that the kill would wake.
type Dependents uint8

const (
	// DependentsDescendants kills those that descend from a target.
	DependentsDescendants Dependents = iota
	// DependentsAll kills every dependent that may be killed.
	DependentsAll
	// DependentsNone kills the targets only.
	DependentsNone
)

// Options steer Make. The zero value is the default policy.
type Options struct {
	Dependents Dependents
	// Protected marks, by process index, those that must never join the kill
	// set. Nil protects nobody beyond what the graph itself rules out
	// (kernel threads, namespace inits, processes not visible).
	Protected []bool
}

// Member is one process of the kill set.
type Member struct {
	Process int32
	Role    Role
	// Because is empty for a target; for a dependent it says through whom it
	// joined: "descendant of smtpserver[811], waits on pipe:[4263]".
	Because string
}

// Wait names one waiter of one source.
type Wait struct {
	Waiter int32 // process
	Source int32
}

// Condition is one wait condition that touches the kill set.
type Condition struct {
	Wait
	// Fires is set when every holder of the source is in the kill set, and
	// the snapshot accounted for all of them.
	Fires bool
}

// Bystander is a wake that the kill causes outside the kill set.
type Bystander struct {
	Wait
	SwapBytes uint64 // what the wake may bring back from swap
	// Indirect is set where not the kill set wakes it, but somebody whom that
	// wakes or, by a signal, ends.
	Indirect bool
	// Dies is set where what wakes it is a signal that ends it.
	Dies bool
}

// Predicted are the figures that follow from the graph alone.
type Predicted struct {
	// NaiveWakes counts the processes outside the targets that would wake if
	// the targets alone were killed, one after the other, in no order.
	NaiveWakes int
	// NaiveSwapInBytes is the swapped-out memory of those processes.
	NaiveSwapInBytes uint64
	// Wakes counts the processes that this plan wakes: bystanders, and
	// members of the kill set with an exposed condition.
	Wakes int
}

// Plan is a kill set in the order of its signals.
type Plan struct {
	Order      []Member    // first to be signalled first
	Conditions []Condition // by waiter, then source
	Bystanders []Bystander // by waiter, then source
	// Exposed are conditions inside the kill set that no order satisfies
	// together with the others: processes that wait on each other.
	Exposed []Wait
	// Unaccounted are the sources whose references the snapshot could not account
	// for, where somebody in the kill set holds them, or may: where no holder was
	// found at all, and a member may hold what is in no descriptor table.
	Unaccounted []int32
	Predicted   Predicted
}
