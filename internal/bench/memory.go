package bench

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The set whose memory is to be freed: 4 GB in all.
const (
	memoryProcesses = 1000
	memoryMiB       = 4
)

// memory measures how long it takes until what the killed had is free again.
func (l *lab) memory(add func(Sample) error) error {
	for run := range l.Runs {
		l.say("%s: run %d of %d", PartMemory, run+1, l.Runs)
		chosen := []*strategy{find(pkill), find(ours)}
		for i := range chosen {
			s := chosen[(i+run)%len(chosen)]
			sample, err := l.kill(s, shape{processes: memoryProcesses, memMiB: memoryMiB})
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			sample.Part, sample.Run = PartMemory, run
			if err := add(*sample); err != nil {
				return err
			}
		}
	}
	return nil
}

// memoryWatch looks every millisecond how much memory the machine has free.
type memoryWatch struct {
	wanted uint64 // bytes free
	stop   chan struct{}
	done   chan uint64 // when they were, on CLOCK_MONOTONIC
}

// watchMemory waits until so many bytes more than now are free, but for what the
// killer uses itself: 2 %.
func watchMemory(bytes int64) (*memoryWatch, error) {
	free, err := freeMemory()
	if err != nil {
		return nil, err
	}
	w := &memoryWatch{
		wanted: free + uint64(bytes)*98/100,
		stop:   make(chan struct{}), done: make(chan uint64, 1),
	}
	go w.run()
	return w, nil
}

func (w *memoryWatch) run() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if free, err := freeMemory(); err == nil && free >= w.wanted {
			w.done <- monotonicNS()
			return
		}
		select {
		case <-tick.C:
		case <-w.stop:
			return
		}
	}
}

// free returns the nanoseconds from began until the memory was free.
func (w *memoryWatch) free(began uint64) (uint64, error) {
	select {
	case at := <-w.done:
		return at - began, nil
	case <-time.After(10 * time.Second):
		return 0, errors.New("the memory of the killed is not free although they are gone")
	}
}

func (w *memoryWatch) end() { close(w.stop) }

func freeMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return uint64(info.Freeram) * uint64(info.Unit), nil
}
