//go:build race

package window

// faultsOfTheTest is how many minor faults the test binary itself may add to a
// window: the race detector keeps notes on whatever is read or written first.
const faultsOfTheTest = 8
