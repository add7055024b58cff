package storm

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// pipeEnds opens pipes for their first user and closes ends after their last.
type pipeEnds struct {
	fds  [][2]int // 0 where not open
	last [][2]int // index of the last user of each end
	open func(*[2]int) error
}

func newPipeEnds(b *builder) *pipeEnds {
	p := &pipeEnds{fds: make([][2]int, b.pipes), last: make([][2]int, b.pipes), open: openPipe}
	if b.fifos {
		p.open = openFIFO
	}
	for i, d := range b.direct {
		if d.in >= 0 {
			p.last[d.in][0] = i
		}
		if d.out >= 0 {
			p.last[d.out][1] = i
		}
	}
	return p
}

// get returns one end of a pipe, or 0 for no pipe.
func (p *pipeEnds) get(pipe, side int) (int, error) {
	if pipe < 0 {
		return 0, nil
	}
	if p.fds[pipe] == [2]int{} {
		if err := p.open(&p.fds[pipe]); err != nil {
			return 0, err
		}
	}
	return p.fds[pipe][side], nil
}

func (p *pipeEnds) release(user int, d direct) {
	for side, pipe := range [2]int{d.in, d.out} {
		if pipe >= 0 && p.last[pipe][side] == user {
			unix.Close(p.fds[pipe][side])
			p.fds[pipe][side] = 0
		}
	}
}

func (p *pipeEnds) closeAll() {
	for _, pair := range p.fds {
		for _, fd := range pair {
			if fd != 0 {
				unix.Close(fd)
			}
		}
	}
}

func openPipe(fds *[2]int) error {
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("create a pipe: %w", err)
	}
	return nil
}

// openFIFO opens both ends of a FIFO that has no name any more.
func openFIFO(fds *[2]int) error {
	dir, err := os.MkdirTemp("", "wakestorm-")
	if err != nil {
		return fmt.Errorf("create a FIFO: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("create a FIFO: %w", err)
	}
	// Neither open waits for the other end.
	in, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a FIFO: %w", err)
	}
	out, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(in)
		return fmt.Errorf("open a FIFO: %w", err)
	}
	*fds = [2]int{in, out}
	return unix.SetNonblock(in, false)
}
