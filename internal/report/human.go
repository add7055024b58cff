package report

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// humanBytes writes a size with binary units: "14.1 GiB".
func humanBytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	// 1023.95 would round to 1024.0 of the smaller unit.
	for value >= 1023.95 && unit < 4 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[max(unit, 0)])
}

// humanNS writes nanoseconds with two or three digits: "4.6 ms", "212 ms".
func humanNS(ns uint64) string {
	switch {
	case ns < 1000:
		return fmt.Sprintf("%d ns", ns)
	case ns < 999_500:
		return threeDigits(float64(ns)/1e3) + " µs"
	case ns < 999_500_000:
		return threeDigits(float64(ns)/1e6) + " ms"
	}
	return fmt.Sprintf("%.1f s", float64(ns)/1e9)
}

func threeDigits(v float64) string {
	if v < 9.95 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// count writes a number with its noun: "1 process", "2 processes".
func count[N int | int64 | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// capped joins at most limit items and says how many it left out.
func capped(items []string, limit int, separator string) string {
	if len(items) <= limit {
		return strings.Join(items, separator)
	}
	return fmt.Sprintf("%s%s%d more", strings.Join(items[:limit], separator), separator, len(items)-limit)
}

// printable replaces what a terminal might obey and what is not UTF-8: a
// process chooses its name.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?'
	}, s)
}

// channelLabels are what people call the channels; a channel that is not
// listed is called by its own name.
var channelLabels = map[string]string{
	waitgraph.ChannelFIFO.String():        "FIFO",
	waitgraph.ChannelUnix.String():        "unix socket",
	waitgraph.ChannelTCP.String():         "TCP socket",
	waitgraph.ChannelPTY.String():         "terminal",
	waitgraph.ChannelChild.String():       "SIGCHLD",
	waitgraph.ChannelParentDeath.String(): "parent-death signal",
	waitgraph.ChannelLock.String():        "file lock",
}

func channelLabel(channel string) string {
	if label, ok := channelLabels[channel]; ok {
		return label
	}
	return printable(channel)
}

var stateLabels = map[string]string{
	"R": "running", "S": "sleeping", "D": "uninterruptible sleep", "T": "stopped",
	"t": "stopped by a tracer", "Z": "zombie", "X": "dead", "I": "idle", "?": "not known",
}

// stateLabel writes a process state as ps letters it, and in words.
func stateLabel(state string) string {
	if label, ok := stateLabels[state]; ok {
		return state + " (" + label + ")"
	}
	return printable(state)
}
