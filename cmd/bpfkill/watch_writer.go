package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/report"
)

// watchWriter shows one interval; last says that it is the last one.
type watchWriter interface {
	write(w *report.Watch, last bool) error
}

func newWatchWriter(stdout io.Writer, o *watchOptions) watchWriter {
	if o.json {
		return jsonWatch{stdout}
	}
	text := &report.WatchText{Verbose: o.verbose}
	if f, ok := stdout.(*os.File); ok && isTerminal(f) {
		return &screenWatch{f, text}
	}
	return &lineWatch{stdout, text}
}

type jsonWatch struct{ out io.Writer }

func (j jsonWatch) write(w *report.Watch, _ bool) error { return report.WriteWatchJSON(j.out, w) }

// lineWatch writes what happened, and what it came to in the end.
type lineWatch struct {
	out  io.Writer
	text *report.WatchText
}

func (l *lineWatch) write(w *report.Watch, last bool) error {
	l.text.Add(w)
	if _, err := l.out.Write(l.text.Lines()); err != nil || !last {
		return err
	}
	_, err := l.out.Write(l.text.Summary())
	return err
}

// screenWatch draws the same table over and over. The last one stays.
type screenWatch struct {
	terminal *os.File
	text     *report.WatchText
}

func (s *screenWatch) write(w *report.Watch, _ bool) error {
	columns, rows := 80, 24
	if size, err := unix.IoctlGetWinsize(int(s.terminal.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
		columns, rows = int(size.Col), int(size.Row)
	}
	s.text.Add(w)
	_, err := s.terminal.Write(s.text.Screen(columns, rows))
	return err
}
