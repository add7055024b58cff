//go:build !race

package window

const faultsOfTheTest = 0
