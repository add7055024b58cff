package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/bpfkill/bpfkill/vmtests/incident"
	"github.com/spf13/pflag"
)

// Between these lines of a document the tables stand.
const (
	tablesBegin = "<!-- tables: written by wakestorm plot -->\n"
	tablesEnd   = "<!-- tables end -->\n"
)

// plotIncident turns the results of staged incidents into tables and a picture.
func plotIncident(args []string) error {
	flags := pflag.NewFlagSet("plot", pflag.ContinueOnError)
	flags.Usage = func() {}
	results := flags.String("results", "", "")
	document := flags.String("document", "", "")
	picture := flags.String("picture", "", "")
	kernel := flags.String("kernel", "", "")
	const usage = "plot --results FILE [--document FILE.md] [--picture NAME [--kernel RELEASE]]"
	if err := flags.Parse(args); errors.Is(err, pflag.ErrHelp) {
		fmt.Println("usage: wakestorm " + usage)
		return nil
	} else if err != nil {
		return usageError{err}
	}
	if *results == "" || flags.NArg() > 0 {
		return usageError{errors.New(usage)}
	}
	file, err := os.Open(*results)
	if err != nil {
		return err
	}
	defer file.Close()
	all, err := incident.Read(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", *results, err)
	}
	machines := incident.Machines(all)
	if len(machines) == 0 {
		return fmt.Errorf("%s holds no results", *results)
	}
	if *document != "" {
		if err := writeTables(*document, machines); err != nil {
			return err
		}
	}
	if *picture == "" {
		return nil
	}
	for _, m := range machines {
		if rest, ok := strings.CutPrefix(m.Kernel, *kernel); ok && (*kernel == "" || rest == "" || strings.ContainsAny(rest[:1], ".-+")) {
			return drawIncident(m, *picture)
		}
	}
	return fmt.Errorf("no results of a kernel %s", *kernel)
}

// writeTables replaces the tables of a document.
func writeTables(path string, machines []*incident.Machine) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := bytes.Cut(text, []byte(tablesBegin))
	_, tail, ok2 := bytes.Cut(rest, []byte(tablesEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines between which tables belong: %s… %s", path, tablesBegin, tablesEnd)
	}
	var b bytes.Buffer
	b.Write(head)
	b.WriteString(tablesBegin)
	for _, m := range machines {
		fmt.Fprintf(&b, "\n%s:\n\n%s", m.Caption(), m.Table())
	}
	b.WriteString("\n" + tablesEnd)
	b.Write(tail)
	return os.WriteFile(path, b.Bytes(), 0o644)
}
