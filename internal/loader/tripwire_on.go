//go:build !tripwire_off

package loader

// tripwireEnabled is false only in a build that checks whether the tests
// notice a tripwire that does nothing.
const tripwireEnabled = true
