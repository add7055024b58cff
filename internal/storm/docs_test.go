package storm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// shownBy lists what the tables of wake sources have in their last column: what shows
// each row, but for those that nothing does, and that say so.
func shownBy(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/wake-sources.md")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the documents are not here: a guest has the tests alone")
	}
	if err != nil {
		t.Fatal(err)
	}
	lastColumn := func(row string) string {
		row = strings.TrimSuffix(strings.TrimSpace(row), "|")
		return strings.TrimSpace(row[strings.LastIndexByte(row, '|')+1:])
	}
	var shown []string
	tables := 0
	for table := range strings.SplitSeq(string(text), "\n\n") {
		rows := strings.Split(strings.TrimSpace(table), "\n")
		switch lastColumn(rows[0]) {
		case "topologies", "topology", "test":
			tables++
			for _, row := range rows[2:] {
				if by := lastColumn(row); !strings.HasPrefix(by, "none: ") {
					shown = append(shown, by)
				}
			}
		}
	}
	if tables != 4 {
		t.Errorf("%d tables whose last column says what shows a row, want 4", tables)
	}
	return shown
}

// TestEveryTopologyIsDocumented: the list of wake sources names the topology that
// shows each, so no topology may be missing there.
func TestEveryTopologyIsDocumented(t *testing.T) {
	var named []string
	for _, shown := range shownBy(t) {
		named = append(named, identifiers(shown)...)
	}
	for _, topology := range Topologies {
		switch topology.Name {
		case "forker", "sleepers", "mail": // nobody waits there, or as in another topology
			continue
		}
		if !slices.Contains(named, topology.Name) {
			t.Errorf("docs/wake-sources.md has no row that %s shows", topology.Name)
		}
	}
}

func identifiers(shown string) []string {
	return strings.FieldsFunc(shown, func(r rune) bool {
		return r != '-' && r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
}

var testName = regexp.MustCompile("`(Test[A-Za-z]+)`")

// TestWhatIsDocumentedIsShown: each row names a topology or a test that exists, or says
// that there is none.
func TestWhatIsDocumentedIsShown(t *testing.T) {
	tests := testNames(t)
	for _, shown := range shownBy(t) {
		all := testName.FindAllStringSubmatch(shown, -1)
		for _, m := range all {
			if !tests[m[1]] {
				t.Errorf("%q: there is no test of that name", m[0])
			}
		}
		if len(all) > 0 {
			continue
		}
		for item := range strings.FieldsFuncSeq(shown, func(r rune) bool { return r == ',' || r == ';' }) {
			name, _, _ := strings.Cut(strings.TrimSpace(item), " ")
			if _, err := Lookup(name); err != nil && name != "with" {
				t.Errorf("%q: %v", shown, err)
			}
		}
	}
}

// testNames are those of all tests of the module.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	declaration := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	names := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err == nil && d.Name() == ".git":
			return fs.SkipDir
		case err != nil || !strings.HasSuffix(path, "_test.go"):
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declaration.FindAllSubmatch(source, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
