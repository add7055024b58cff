//go:build tripwire_off

package loader

// tripwireEnabled is off: a fault injected on purpose. Tests must fail.
const tripwireEnabled = false
