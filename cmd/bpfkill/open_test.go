package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
)

// TestBatchThatDoesNotLoad: --engine auto goes on without a batch program that
// the kernel refuses, and says so; --engine batch does not, and the others do not try.
func TestBatchThatDoesNotLoad(t *testing.T) {
	nstest.Require(t)
	if err := loader.Prepare(); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused by the verifier")
	executor := func(o loader.ExecutorOptions) (*loader.Executor, error) {
		if o.Batch {
			return nil, refused
		}
		return loader.NewExecutor(o)
	}
	for _, engine := range []string{engineAuto, engineBatch, engineLoop, engineCgroup} {
		t.Run(engine, func(t *testing.T) {
			var stderr bytes.Buffer
			s := &session{options: &options{engine: engine}, stderr: &stderr, tools: tools{newExecutor: executor}}
			batch, err := s.open(nil)
			defer func() {
				if err := s.tools.close(); err != nil {
					t.Error(err)
				}
			}()
			if engine == engineBatch {
				if !errors.Is(err, refused) {
					t.Errorf("%v, want %v", err, refused)
				}
				return
			}
			if engine != engineAuto {
				if err != nil || stderr.Len() != 0 {
					t.Errorf("error %v, stderr %q; the program is not needed", err, stderr.String())
				}
			} else if err != nil || !errors.Is(batch, refused) || !strings.Contains(stderr.String(), refused.Error()) {
				t.Errorf("error %v, batch %v, stderr %q", err, batch, stderr.String())
			}
			if s.tools.executor == nil || s.tools.observer == nil || s.tools.snapshotter == nil {
				t.Error("not everything is loaded")
			}
		})
	}
}
