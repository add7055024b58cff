// Package loader is the only one that knows cilium/ebpf: it loads the
// snapshot, execute and observe objects and turns what they say into plain Go
// values.
package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// setVariables sets the named constants of an object before it is loaded.
func setVariables(spec *ebpf.CollectionSpec, values map[string]any) error {
	for name, value := range values {
		v, ok := spec.Variables[name]
		if !ok {
			return fmt.Errorf("set %s: no such variable", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// kernelTypes are the kernel's own BTF, parsed once for all objects: that takes
// longer than anything else about loading one.
var kernelTypes = btf.NewCache()

func collectionOptions() *ebpf.CollectionOptions {
	return &ebpf.CollectionOptions{Cache: kernelTypes}
}

// VerifierLog returns the verifier's whole log when err comes from a program
// that the kernel refused, or "".
func VerifierLog(err error) string {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return fmt.Sprintf("%+v", ve)
	}
	return ""
}
