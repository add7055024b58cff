package report

// Result is what a kill did. Every figure in it was measured. It is the
// "result" object of JSON schema 1; fields are added, never renamed.
type Result struct {
	Signalled int        `json:"signalled"`
	Gone      int        `json:"gone"`
	Survivors []Survivor `json:"survivors"`
	Skipped   []Skipped  `json:"skipped"`

	WindowNS    uint64 `json:"window_ns"` // first SIGKILL generated to the last
	Window      Window `json:"window"`
	Tripped     int    `json:"tripped"`      // killed by the tripwire
	EarlyWakes  int    `json:"early_wakes"`  // members woken by another's death before their own signal
	UserReturns int    `json:"user_returns"` // members that slept at the opening and came back to user mode
	Inherited   int    `json:"inherited"`    // children forked in the race
	Rounds      int    `json:"rounds"`       // passes until nobody was left to signal

	Wakes          []Wake `json:"wakes"`
	BystanderWakes int    `json:"bystander_wakes"` // distinct processes
	SwapInPages    uint64 `json:"swap_in_pages"`
	MajorFaults    uint64 `json:"major_faults"`
	FreedBytes     uint64 `json:"freed_bytes"`
	ExitNS         ExitNS `json:"exit_ns"`
	LostEvents     uint64 `json:"lost_events"`
	Lost           Lost   `json:"lost"` // the same by kind
}

// Lost counts what was not measured. Forks and changes of TCP states are at most
// so many.
type Lost struct {
	Wakes     uint64 `json:"wakes"`
	Costs     uint64 `json:"costs"` // of wakes that are counted, and were not followed
	Forks     uint64 `json:"forks"`
	Signals   uint64 `json:"signals"`
	Exits     uint64 `json:"exits"`
	TCPStates uint64 `json:"tcp_states"`
}

// Survivor is a member of the kill set that outlived the timeout.
type Survivor struct {
	PID   int32  `json:"pid"`
	Comm  string `json:"comm"`
	State string `json:"state"`
}

// Skipped is a member of the kill set that was not signalled.
type Skipped struct {
	PID int32  `json:"pid"`
	Why string `json:"why"`
}

// Wake is who woke whom, by channel, as measured.
type Wake struct {
	PID       int32  `json:"pid"` // the woken process, 0 where not visible
	Comm      string `json:"comm"`
	Killed    bool   `json:"killed"` // a member of the kill set, woken early
	Channel   string `json:"channel"`
	Cause     int32  `json:"cause"` // the dying process
	Count     uint64 `json:"count"`
	Again     uint64 `json:"again"` // of Count: the thread had woken by this kill, returned to user mode, and went to sleep anew
	Predicted bool   `json:"predicted"`

	// What came of it until the woken threads slept again, of the wakes that
	// were followed so far.
	Followed    uint64  `json:"followed"`
	UserReturns uint64  `json:"user_returns"` // went back to user mode
	MajorFaults uint64  `json:"major_faults"`
	SwapIns     *uint64 `json:"swap_ins"` // faults on swapped-out pages, null where the kernel hides them
	CPUNS       uint64  `json:"cpu_ns"`
}

// ExitNS are the times from a process's signal until its last thread left its CPU for
// good, its memory and files released, in nanoseconds.
type ExitNS struct {
	P50 uint64 `json:"p50"`
	P99 uint64 `json:"p99"`
	Max uint64 `json:"max"`
}
