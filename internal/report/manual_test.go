package report

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// The manual names every field of the JSON schema.
func TestManualNamesEveryField(t *testing.T) {
	manual, err := os.ReadFile("../../docs/bpfkill.1.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(manual), "\n## JSON\n")
	if !found {
		t.Fatal("the manual has no section JSON")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	fields := fieldNames(reflect.TypeFor[Report]())
	if len(fields) < 80 {
		t.Errorf("only %d fields found: %q", len(fields), fields)
	}
	for _, path := range fields {
		name := path[strings.LastIndex(path, ".")+1:]
		if !strings.Contains(section, "**"+name+"**") && !strings.Contains(section, "."+name+"**") {
			t.Errorf("the manual does not name %s", path)
		}
	}
}

// fieldNames returns the paths of a type's JSON fields, and of those below.
func fieldNames(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		names = append(names, name)
		for _, below := range fieldNames(t.Field(i).Type) {
			names = append(names, name+"."+below)
		}
	}
	return names
}
