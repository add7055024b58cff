package storm

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestEveryTopologyIsDocumented: the list of wake sources names the topology that
// shows each, so no topology may be missing there.
func TestEveryTopologyIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/wake-sources.md")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the documents are not here: a guest has the tests alone")
	}
	if err != nil {
		t.Fatal(err)
	}
	var shown []string // in the last column of a table
	for line := range strings.Lines(string(text)) {
		row, ok := strings.CutSuffix(strings.TrimSpace(line), "|")
		if !ok {
			continue
		}
		shown = append(shown, strings.FieldsFunc(row[strings.LastIndexByte(row, '|')+1:], func(r rune) bool {
			return r != '-' && r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
		})...)
	}
	for _, topology := range Topologies {
		switch topology.Name {
		case "forker", "sleepers", "mail": // nobody waits there, or as in another topology
			continue
		}
		if !slices.Contains(shown, topology.Name) {
			t.Errorf("docs/wake-sources.md has no row that %s shows", topology.Name)
		}
	}
}
