package vmtests

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// results gathers what became of every kernel. It is safe for concurrent use.
type results struct {
	mu   sync.Mutex
	rows map[string]*row
}

type row struct {
	failed             bool
	summary            string
	problems, evidence []string
}

func (r *results) change(kernel string, change func(*row)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows == nil {
		r.rows = map[string]*row{}
	}
	if r.rows[kernel] == nil {
		r.rows[kernel] = &row{}
	}
	change(r.rows[kernel])
}

// add notes that a kernel is done.
func (r *results) add(kernel string, failed bool) {
	r.change(kernel, func(w *row) { w.failed = failed })
}

// summarise notes the line about a kernel's boot.
func (r *results) summarise(kernel, line string) {
	r.change(kernel, func(w *row) { w.summary = line })
}

// say notes what is wrong under a kernel and the console lines that show it.
func (r *results) say(kernel string, problems, evidence []string) {
	r.change(kernel, func(w *row) { w.problems, w.evidence = problems, evidence })
}

// String is a line for each kernel, and for those that failed the reason.
func (r *results) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	kernels := make([]string, 0, len(r.rows))
	for k := range r.rows {
		kernels = append(kernels, k)
	}
	slices.Sort(kernels)
	var b strings.Builder
	for _, k := range kernels {
		w := r.rows[k]
		verdict := "ok  "
		if w.failed {
			verdict = "FAIL"
		}
		fmt.Fprintf(&b, "\n%s %s: %s", verdict, k, w.summary)
		for _, p := range w.problems {
			fmt.Fprintf(&b, "\n       %s", p)
		}
		for _, line := range w.evidence {
			fmt.Fprintf(&b, "\n         | %s", line)
		}
	}
	return b.String()
}

// failureLines returns, at most n lines of it, what a console says of the tests
// that failed: from the failed test's start to its verdict, or to the stacks of
// a panic.
func failureLines(console string, n int) []string {
	var found, block []string
	keep := 0 // lines to keep without asking
	for line := range strings.Lines(console) {
		line = strings.TrimRight(line, "\n")
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "=== RUN ") && !strings.Contains(line, "/"), strings.HasPrefix(line, "=== ."):
			block = nil
		case strings.HasPrefix(trimmed, "--- FAIL"):
			found = append(append(found, block...), line)
			block = nil
			continue
		case strings.HasPrefix(line, "panic: "), strings.HasPrefix(line, "fatal error: "), strings.HasPrefix(line, "guest: "):
			found, block, keep = append(found, block...), nil, 25
		}
		switch {
		case keep > 0:
			keep--
			found = append(found, line)
		case !strings.HasPrefix(trimmed, "--- PASS"):
			block = append(block, line)
		}
	}
	return found[max(0, len(found)-n):]
}

func TestFailureLines(t *testing.T) {
	const console = `=== ./a
=== RUN   TestGood
    good_test.go:1: said
--- PASS: TestGood (0.00s)
=== RUN   TestBad
=== RUN   TestBad/sub
    bad_test.go:1: broken
--- FAIL: TestBad (0.00s)
    --- FAIL: TestBad/sub (0.00s)
FAIL
guest: ./a: exit status 1
`
	got := strings.Join(failureLines(console, 100), "\n")
	for _, want := range []string{"=== RUN   TestBad/sub", "bad_test.go:1: broken", "--- FAIL: TestBad/sub", "guest: ./a"} {
		if !strings.Contains(got, want) {
			t.Errorf("failureLines leaves out %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "good") {
		t.Errorf("failureLines keeps what passed:\n%s", got)
	}
	if few := failureLines(console, 2); len(few) != 2 || !strings.HasPrefix(few[1], "guest: ") {
		t.Errorf("failureLines cut to two lines gives %q", few)
	}
}

func TestResults(t *testing.T) {
	var r results
	r.add("b", true)
	r.say("b", []string{"./x: exit status 1: TestX"}, []string{"--- FAIL: TestX"})
	r.summarise("a", "Linux 1: 3 passed")
	r.add("a", false)
	const want = `
ok   a: Linux 1: 3 passed
FAIL b: 
       ./x: exit status 1: TestX
         | --- FAIL: TestX`
	if got := r.String(); got != want {
		t.Errorf("results say %q, want %q", got, want)
	}
}
