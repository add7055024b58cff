package loader

import "testing"

func TestMarksAsk(t *testing.T) {
	const written, read, inotify, onlyDir = 0x8, 0x10, unmounted | eventOnChild, 0x10
	for _, test := range []struct {
		name          string
		events, event uint32
		on            int
		want          bool
	}{
		{"what it asks for", written, written, 0, true},
		{"something else", written, read, 0, false},
		{"the directory, by inotify", inotify | read, read, onDirectory, true},
		{"the directory's own closes only", read, read, onDirectory, false},
		{"a directory that is closed, by inotify", inotify | read, read | isDirectory, 0, true},
		{"a directory that is closed, by fanotify", read, read | isDirectory, 2, false},
		{"by fanotify, with FAN_ONDIR", read | isDirectory, read | isDirectory, 2, true},
		{"only that it is a directory is the same", isDirectory | written, onlyDir | isDirectory, 2, false},
	} {
		if got := (watchedMark{events: test.events}).asks(test.event, test.on); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
