// Package incident stages the incident that bpfkill was written for in a
// virtual machine: more sleepers than memory, all of them swapped out to a real
// disk, and somebody kills the servers. What is measured comes out as one
// [Result] a boot.
package incident

import (
	"encoding/json"
	"fmt"
	"strings"
)

// InstructionClock is a nanosecond for each instruction, of all processors together.
const InstructionClock = "instructions"

// Result is what one way of killing did to one freshly booted machine. Times
// are the guest's, and begin when the killing command was started.
type Result struct {
	Strategy string `json:"strategy"`
	Kernel   string `json:"kernel"`         // uname -r
	Arch     string `json:"arch"`           // as Go says it
	Date     string `json:"date,omitempty"` // of the run, YYYY-MM-DD
	Run      int    `json:"run"`
	// Clock is what the machine's time is measured by: [InstructionClock], or
	// nothing for the emulating machine's.
	Clock string `json:"clock,omitempty"`

	CPUs        int   `json:"cpus"`
	MemoryBytes int64 `json:"memory_bytes"` // of the machine, as the kernel counts it
	PageBytes   int64 `json:"page_bytes"`
	Servers     int   `json:"servers"`
	Routers     int   `json:"routers"`
	RouterBytes int64 `json:"router_bytes"` // incompressible, of each router
	// Private memory of both together before the kill.
	SwappedBytes  int64 `json:"swapped_bytes"`
	ResidentBytes int64 `json:"resident_bytes"`

	// Of the whole machine.
	SwapInPages  uint64 `json:"swap_in_pages"`
	SwapOutPages uint64 `json:"swap_out_pages"`
	MajorFaults  uint64 `json:"major_faults"`
	// The part of MajorFaults that the kernel charged to servers and routers
	// that ran user code after their wake; to the killer, the heartbeat and the
	// parent of the servers (and to each of these); and the rest, which is the
	// dying's: a fault that SIGKILL cuts short reads its page, but is charged to nobody.
	FaultsWoken     uint64 `json:"faults_woken"`
	FaultsOthers    uint64 `json:"faults_others"`
	FaultsKiller    uint64 `json:"faults_killer,omitempty"`
	FaultsParent    uint64 `json:"faults_parent,omitempty"`
	FaultsHeartbeat uint64 `json:"faults_heartbeat,omitempty"`
	FaultsDying     uint64 `json:"faults_dying"`
	// The parts of SwapInPages that were read by servers and routers that ran user code
	// after their wake; by the others of these, who only die; and by everybody else (of
	// whom the killer alone).
	PagesWoken  uint64 `json:"pages_woken"`
	PagesDying  uint64 `json:"pages_dying"`
	PagesOthers uint64 `json:"pages_others"`
	PagesKiller uint64 `json:"pages_killer,omitempty"`
	// PSIFullUS is how long every task that could have run waited for memory,
	// in microseconds.
	PSIFullUS uint64 `json:"psi_full_us"`

	// RanUserCode counts servers and routers that ran after they had been asleep,
	// by their own word.
	RanUserCode int `json:"ran_user_code"`
	// HeartbeatGapMS is the longest time between two beats of a process that
	// touches its own memory every 10 ms; QuietGapMS is the same for the time
	// before the kill.
	HeartbeatGapMS float64 `json:"heartbeat_gap_ms"`
	QuietGapMS     float64 `json:"quiet_gap_ms"`
	// HeartbeatGapAtMS is when that longest time began.
	HeartbeatGapAtMS float64 `json:"heartbeat_gap_at_ms"`
	// How late the beat at its end began; and of the gap, how long the heartbeat had a
	// processor and waited for one, its major faults, and the processor that it got then.
	// Where it was late and did neither, nothing was emulated for it.
	HeartbeatGapLateMS float64 `json:"heartbeat_gap_late_ms,omitempty"`
	HeartbeatGapRanMS  float64 `json:"heartbeat_gap_ran_ms,omitempty"`
	HeartbeatGapWaitMS float64 `json:"heartbeat_gap_wait_ms"`
	HeartbeatGapFaults int     `json:"heartbeat_gap_faults"`
	HeartbeatGapCPU    int     `json:"heartbeat_gap_cpu"`
	// GoneMS is when the last process that the strategy kills was gone, and
	// CalmMS when the last page was swapped in; 0 for none.
	GoneMS    float64 `json:"gone_ms"`
	CalmMS    float64 `json:"calm_ms"`
	Survivors int     `json:"survivors"` // that the strategy should have killed
	// ExitStatus is that of bpfkill, where it was bpfkill that killed, and
	// WindowNS the time from its first SIGKILL to the last.
	ExitStatus int    `json:"exit_status"`
	WindowNS   uint64 `json:"window_ns,omitempty"`
	// Swapped is how many processes of its kill set bpfkill found on swap, and Reaped
	// how many of them had that freed before they could run.
	Swapped int `json:"swapped,omitempty"`
	Reaped  int `json:"reaped,omitempty"`
	// Trouble is why the run failed, other than by missing a bar. Where it left nothing that
	// was measured, MemoryBytes is 0 as well.
	Trouble string `json:"trouble,omitempty"`
	// Boots is 2 where the first machine died before it had a result.
	Boots int `json:"boots,omitempty"`

	// Samples are taken every 20 ms, or as often as the machine lets.
	Samples []Sample `json:"samples"`
}

// Measured says that the machine lived to say its result.
func (r *Result) Measured() bool { return r.MemoryBytes != 0 }

// Sample is the machine at one time after the kill began.
type Sample struct {
	MS    float64 `json:"ms"`
	Pages uint64  `json:"pages"` // swapped in since the kill began
}

// RouterPages is how many pages the routers have together, beside what every process has.
func (r *Result) RouterPages() uint64 { return uint64(r.Routers) * uint64(r.RouterBytes/r.PageBytes) }

// PagesOfTheKill is how many pages were swapped in until the last process that the
// strategy kills was gone, or 20 ms longer. What is read later is read by survivors.
func (r *Result) PagesOfTheKill() uint64 {
	for _, s := range r.Samples {
		if r.Survivors == 0 && s.MS >= r.GoneMS {
			return s.Pages
		}
	}
	return r.SwapInPages
}

// linePrefix marks the line of a guest's console that holds the result.
const linePrefix = "INCIDENT "

// Line is the result as a line of the console.
func (r *Result) Line() (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode the result: %w", err)
	}
	return linePrefix + string(b), nil
}

// FromConsole finds the result in what a guest said.
func FromConsole(text string) (*Result, error) {
	for line := range strings.Lines(text) {
		_, data, ok := strings.Cut(line, linePrefix+"{")
		if !ok {
			continue
		}
		var r Result
		if err := json.Unmarshal([]byte("{"+data), &r); err != nil {
			return nil, fmt.Errorf("the guest's result is garbled: %w", err)
		}
		return &r, nil
	}
	return nil, fmt.Errorf("the guest said no result")
}

// thin leaves out samples between which nothing happened, and of the rest as
// many as keeps their number at about limit. The first and the last stay.
func thin(samples []Sample, limit int) []Sample {
	var out []Sample
	for i, s := range samples {
		last := i == len(samples)-1
		if i > 0 && !last && s.Pages == samples[i-1].Pages && s.Pages == samples[i+1].Pages {
			continue
		}
		out = append(out, s)
	}
	if len(out) <= limit {
		return out
	}
	step := float64(len(out)-1) / float64(limit-1)
	kept := make([]Sample, limit)
	for i := range kept {
		kept[i] = out[int(float64(i)*step+0.5)]
	}
	return kept
}
