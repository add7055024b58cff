package vmtests

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// places are how many machines may run at once. Of those that wait for one, the first in
// a given order gets it.
type places struct {
	mu      sync.Mutex
	changed *sync.Cond
	free    int
	waiting []int
}

func newPlaces(n int) *places {
	p := &places{free: n}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// enlist says that whoever has this number will wait: whoever does before anybody takes
// a place is in order.
func (p *places) enlist(order int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = append(p.waiting, order)
}

// take waits for a place.
func (p *places) take(order int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.free == 0 || slices.Min(p.waiting) != order {
		p.changed.Wait()
	}
	p.free--
	p.waiting = slices.DeleteFunc(p.waiting, func(o int) bool { return o == order })
	p.changed.Broadcast()
}

// leave gives it back.
func (p *places) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	p.changed.Broadcast()
}

// TestPlaces: the first in the order goes first, whoever asks first.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces(2)
		orders := []int{3, 1, 0, 2}
		for _, o := range orders {
			p.enlist(o)
		}
		var mu sync.Mutex
		var began []int
		for _, o := range orders {
			go func() {
				p.take(o)
				mu.Lock()
				defer mu.Unlock()
				began = append(began, o)
			}()
			synctest.Wait()
		}
		for range orders[2:] {
			p.leave()
			synctest.Wait()
		}
		if !slices.Equal(began, []int{0, 1, 2, 3}) && !slices.Equal(began, []int{1, 0, 2, 3}) {
			t.Errorf("began in the order %v", began)
		}
	})
}
