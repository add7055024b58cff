package report

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// interval is a second in which two servers wake their routers, and a server's
// name drives the terminal.
func interval(counts ...uint64) *Watch {
	w := &Watch{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), ElapsedNS: 3e9, IntervalNS: 1e9, Selected: 2, Met: 3,
		Wakes: []Contact{
			{Cause: 811, CauseComm: "smtpserver", PID: 812, Comm: "router", Channel: "pipe"},
			{Cause: 813, CauseComm: "smtpserver", PID: 814, Comm: "router", Channel: "pipe"},
			{Cause: 811, CauseComm: "smtpserver", PID: 0, Comm: "log\x1bd", Channel: "unix"},
		},
	}
	for i, n := range counts {
		w.Wakes[i].Count, w.Wakes[i].Total = n, n
	}
	return w
}

func TestWatchJSON(t *testing.T) {
	var out bytes.Buffer
	if err := WriteWatchJSON(&out, interval(2, 0, 7)); err != nil {
		t.Fatal(err)
	}
	want := `{"version":1,"time":"2026-01-02T03:04:05Z","elapsed_ns":3000000000,"interval_ns":1000000000,"selected":2,"met":3,` +
		`"wakes":[{"cause":811,"cause_comm":"smtpserver","pid":0,"comm":"log\u001bd","channel":"unix","count":7,"total":7},` +
		`{"cause":811,"cause_comm":"smtpserver","pid":812,"comm":"router","channel":"pipe","count":2,"total":2}],"lost_events":0}` + "\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := WriteWatchJSON(&out, &Watch{}); err != nil || !strings.Contains(out.String(), `"wakes":[]`) {
		t.Errorf("nobody woke: %s, %v", out.String(), err)
	}
}

func TestWatchLines(t *testing.T) {
	var text WatchText
	text.Add(interval(2, 3, 7))
	want := "03:04:05       7.0/s  smtpserver -> log?d  unix socket\n" +
		"03:04:05       5.0/s  smtpserver ×2 -> router ×2  pipe\n"
	if got := string(text.Lines()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	text.Add(interval())
	if got := string(text.Lines()); got != "03:04:05       0.0/s\n" {
		t.Errorf("nobody woke: %q", got)
	}
	text = WatchText{Verbose: true}
	text.Add(interval(0, 3, 7))
	want = "03:04:05       7.0/s  smtpserver[811] -> log?d[?]  unix socket\n" +
		"03:04:05       3.0/s  smtpserver[813] -> router[814]  pipe\n"
	if got := string(text.Lines()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Totals go on when the processes are gone.
func TestWatchSummary(t *testing.T) {
	var text WatchText
	text.Add(interval(2, 3, 7))
	text.Add(interval(30, 1))
	gone := interval()
	gone.Wakes, gone.LostEvents = nil, 1
	text.Add(gone)
	want := `bpfkill watch: 2 processes selected, 3 more woken by them, 3.0 s; 1 wake was not counted
PER SECOND      TOTAL  WAKER       WAKEE   CHANNEL
      12.0         36  smtpserver  router  pipe
       2.3          7  smtpserver  log?d   unix socket
`
	if got := string(text.Summary()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWatchScreen(t *testing.T) {
	var text WatchText
	text.Add(interval(2, 3, 7))
	got := string(text.Screen(40, 24))
	want := "\x1b[Hbpfkill watch: 2 processes selected, 3 m\x1b[K\n" +
		"PER SECOND      TOTAL  WAKER          WA\x1b[K\n" +
		"       7.0          7  smtpserver     lo\x1b[K\n" +
		"       5.0          5  smtpserver ×2  ro\x1b[K\n\x1b[J"
	if got != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	if got := string(text.Screen(0, 4)); !strings.Contains(got, "2 more rows") || strings.Count(got, "\n") != 3 {
		t.Errorf("four rows: %q", got)
	}
	text = WatchText{}
	text.Add(&Watch{})
	if got := string(text.Screen(80, 24)); !strings.Contains(got, "nobody was woken") {
		t.Errorf("%q", got)
	}
}
