package report

import (
	"fmt"
	"io"
	"strings"
)

// Answer says whether a feature works here.
type Answer string

const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown" // could not be told
)

// Doctor is what a kernel and a process's privileges allow. Its JSON form is one
// object of schema 1; fields are added, never renamed.
type Doctor struct {
	Version  int       `json:"version"` // SchemaVersion
	Kernel   string    `json:"kernel"`
	Features []Feature `json:"features"`
	Engine   string    `json:"engine"` // what --engine auto takes, "" for none
	Works    bool      `json:"works"`  // the kill path: every needed feature is there
}

// Feature is one row.
type Feature struct {
	Name   string `json:"name"`
	Answer Answer `json:"answer"`
	Needed bool   `json:"needed"` // nothing is killed without it
	Since  string `json:"since"`  // the first Linux that has it, "" where that is not what it takes
	Detail string `json:"detail"` // what was tried, or what is missing
}

// WriteDoctor writes d as text, or as JSON.
func WriteDoctor(out io.Writer, d *Doctor, format Format) error {
	if format == FormatJSON {
		whole := *d
		whole.Version, whole.Features = SchemaVersion, nonNil(d.Features)
		return encode(out, &whole, "  ")
	}
	_, err := io.WriteString(out, d.text())
	return err
}

func (d *Doctor) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "bpfkill doctor: Linux %s\n", printable(d.Kernel))
	width := 0
	for _, f := range d.Features {
		width = max(width, len(f.Name))
	}
	for _, f := range d.Features {
		line := fmt.Sprintf("%-*s  %-16s  %s", width, f.Name, f.answer(), printable(f.Detail))
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	engine := d.Engine
	if engine == "" {
		engine = "none"
	}
	fmt.Fprintf(&b, "%-*s  %s\n", width, "engine auto takes", engine)
	if d.Works {
		b.WriteString("bpfkill can kill here\n")
	} else {
		b.WriteString("bpfkill cannot kill here: " + strings.Join(d.missing(), ", ") + "\n")
	}
	return b.String()
}

func (f *Feature) answer() string {
	switch f.Answer {
	case Yes:
		return "yes"
	case No:
		if f.Since != "" {
			return "no (Linux " + f.Since + ")"
		}
		return "no"
	}
	return "could not tell"
}

// missing names what is needed and not there or, where all that could be told is
// there, what could not be told.
func (d *Doctor) missing() []string {
	for _, answer := range []Answer{No, Unknown} {
		var names []string
		for _, f := range d.Features {
			if f.Needed && f.Answer == answer {
				names = append(names, f.Name)
			}
		}
		if len(names) > 0 {
			return names
		}
	}
	return nil
}
