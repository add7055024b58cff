// Package protocol is what the host and the guest of a VM test say to each
// other: a manifest that travels in the initramfs, and sentinel lines on the
// serial console.
package protocol

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// ManifestPath is where the guest finds its [Manifest].
const ManifestPath = "/vmtest.json"

// NonceParameter is the kernel command-line parameter that carries the nonce
// of this boot. Without it a test that prints a sentinel of its own (this
// package's tests do) could pass for the guest's verdict.
const NonceParameter = "vmtest.nonce"

// ModulesPath lists, one path a line and in loading order, the kernel modules
// to load before the tests. Absent when there are none.
const ModulesPath = "/vmtest.modules"

// Program is one test binary to run in the guest.
type Program struct {
	Name    string // the package, "./internal/loader"
	Path    string // in the guest
	Dir     string // working directory in the guest
	Args    []string
	Timeout time.Duration // after it the guest kills the binary
}

// Manifest is everything the guest has to do.
type Manifest struct {
	Env      []string
	Programs []Program
}

// Counts are the tests of one binary, subtests included, by outcome.
type Counts struct {
	Passed, Failed, Skipped int
}

// Add returns the sum of both.
func (c Counts) Add(d Counts) Counts {
	return Counts{c.Passed + d.Passed, c.Failed + d.Failed, c.Skipped + d.Skipped}
}

// Outcome is how one program ended.
type Outcome struct {
	Name string
	// Status is empty for success, else what went wrong: "exit status 1",
	// "signal: killed", "no test ran".
	Status string `json:",omitempty"`
	Counts
	Seconds float64
	// Failures and Skips name tests; a skip is followed by its reason.
	Failures, Skips []string `json:",omitempty"`
	// Strays counts processes that the program left behind.
	Strays int `json:",omitempty"`
}

// Verdict is the guest's last word.
type Verdict struct {
	Release  string // uname -r
	Outcomes []Outcome
	// Taint is /proc/sys/kernel/tainted at the end: 512 means that the
	// kernel printed a warning of its own.
	Taint uint64 `json:",omitempty"`
	// Trouble is set when the guest could not do its work.
	Trouble string `json:",omitempty"`
}

// Kind is the kind of a sentinel line.
type Kind string

const (
	Ready   Kind = "ready"   // user space is up; the payload is the release
	Alive   Kind = "alive"   // heartbeat
	Decided Kind = "verdict" // the payload is a Verdict as JSON
)

// Sentinel returns the line, without its newline, that says kind and payload.
func Sentinel(nonce string, kind Kind, payload string) string {
	return strings.TrimRight(fmt.Sprintf("VMTEST-%s %s %s", nonce, kind, payload), " ")
}

// Verdict returns the sentinel line for v.
func (v Verdict) Sentinel(nonce string) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode verdict: %w", err)
	}
	return Sentinel(nonce, Decided, string(b)), nil
}

// Parse finds a sentinel of this nonce in a console line. The kernel may have
// printed half a line in front of it, so it need not begin the line.
func Parse(nonce, line string) (kind Kind, payload string, ok bool) {
	_, rest, ok := strings.Cut(line, "VMTEST-"+nonce+" ")
	if !ok {
		return "", "", false
	}
	word, payload, _ := strings.Cut(strings.TrimRight(rest, "\r\n"), " ")
	switch k := Kind(word); k {
	case Ready, Alive, Decided:
		return k, payload, true
	}
	return "", "", false
}
