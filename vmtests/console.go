package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

// console collects what a guest writes to its serial line and finds the
// sentinels in it, wherever the reads happen to cut. It is safe for one
// writer beside readers.
type console struct {
	nonce string

	mu       sync.Mutex
	partial  []byte // the line that has no end yet
	text     strings.Builder
	last     time.Time // when anything came
	ready    time.Time // when user space came up
	verdicts int
	verdict  protocol.Verdict
	decided  chan struct{} // closed with the first verdict
	err      error         // the first malformed verdict
}

func newConsole(nonce string) *console {
	return &console{nonce: nonce, last: time.Now(), decided: make(chan struct{})}
}

// Write takes the next bytes of the console. It never fails.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	c.partial = append(c.partial, b...)
	for {
		line, rest, found := bytes.Cut(c.partial, []byte("\n"))
		if !found {
			return len(b), nil
		}
		c.line(string(line))
		c.partial = append([]byte(nil), rest...)
	}
}

func (c *console) line(line string) {
	kind, payload, ok := protocol.Parse(c.nonce, line)
	if !ok {
		c.text.WriteString(strings.TrimRight(line, "\r"))
		c.text.WriteByte('\n')
		return
	}
	switch kind {
	case protocol.Ready:
		c.ready = c.last
	case protocol.Decided:
		c.decide(payload)
	}
}

func (c *console) decide(payload string) {
	var verdict protocol.Verdict
	if err := json.Unmarshal([]byte(payload), &verdict); err != nil {
		if c.err == nil {
			c.err = fmt.Errorf("the verdict is garbled: %w: %q", err, payload)
		}
		return
	}
	if c.verdicts++; c.verdicts == 1 {
		c.verdict = verdict
		close(c.decided)
	}
}

// Verdict returns the guest's verdict. An error means that there is none, or
// more than one: neither says anything about the tests.
func (c *console) Verdict() (protocol.Verdict, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.verdicts > 1:
		return protocol.Verdict{}, fmt.Errorf("%d verdicts came from one boot", c.verdicts)
	case c.verdicts == 1:
		return c.verdict, nil
	case c.err != nil:
		return protocol.Verdict{}, c.err
	}
	return protocol.Verdict{}, errNoVerdict
}

// Text returns the console without the sentinels.
func (c *console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String() + string(c.partial)
}

// silence returns for how long nothing has come, the heartbeat included.
func (c *console) silence() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.last)
}

// readyAt returns when user space came up; zero if it has not.
func (c *console) readyAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}
