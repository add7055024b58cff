package incident

import "testing"

func TestPagesOfTheKill(t *testing.T) {
	r := Result{SwapInPages: 50, GoneMS: 100, Samples: []Sample{{0, 0}, {95, 2}, {105, 5}, {200, 5}, {220, 50}}}
	if got := r.PagesOfTheKill(); got != 5 {
		t.Errorf("%d pages, want the 5 that were read when the last was gone", got)
	}
	r.GoneMS = 150 // nothing happened, and no sample was kept, between
	if got := r.PagesOfTheKill(); got != 5 {
		t.Errorf("%d pages, want 5", got)
	}
	r.GoneMS, r.Survivors = 80, 1
	if got := r.PagesOfTheKill(); got != 50 {
		t.Errorf("%d pages with a survivor, want all 50", got)
	}
}
