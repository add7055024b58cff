package report

import "errors"

// Format is how a report is written.
type Format uint8

const (
	FormatText Format = iota // for people
	FormatJSON               // schema 1, one object
	FormatDOT                // the plan as a graph, for Graphviz
)

// ParseFormat reads a format's name: text, json or dot.
func ParseFormat(name string) (Format, error) {
	switch name {
	case "text":
		return FormatText, nil
	case "json":
		return FormatJSON, nil
	case "dot":
		return FormatDOT, nil
	}
	return 0, errors.New("must be one of text, json, dot")
}
