package bench

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
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
		chosen := l.chosen([]string{pkill, ours})
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

// memoryWatch looks every millisecond how much anonymous memory is mapped on the
// machine. What is free does not tell: each CPU keeps some hundred MiB of freed
// pages at hand, which do not count as free.
type memoryWatch struct {
	wanted uint64 // bytes, or less
	stop   chan struct{}
	done   chan uint64 // when it was so, on CLOCK_MONOTONIC
}

// watchMemory waits until so many bytes less than now are mapped, but for what the
// killer uses itself, and others take meanwhile: 3 %.
func watchMemory(bytes int64) (*memoryWatch, error) {
	mapped, err := anonymousMemory()
	if err != nil {
		return nil, err
	}
	freed := uint64(bytes) * 97 / 100
	if mapped < freed {
		return nil, fmt.Errorf("%d bytes are mapped on the machine, fewer than were staged", mapped)
	}
	w := &memoryWatch{wanted: mapped - freed, stop: make(chan struct{}), done: make(chan uint64, 1)}
	go w.run()
	return w, nil
}

func (w *memoryWatch) run() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if mapped, err := anonymousMemory(); err == nil && mapped <= w.wanted {
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

func anonymousMemory() (uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "AnonPages:")
	var kB uint64
	if _, err := fmt.Sscanf(rest, "%d kB", &kB); err != nil {
		return 0, fmt.Errorf("read AnonPages: %w", err)
	}
	return kB << 10, nil
}
