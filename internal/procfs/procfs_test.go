package procfs

import (
	"io/fs"
	"strings"
	"testing"
)

func TestCheckOwn(t *testing.T) {
	for _, tt := range []struct {
		name, link string
		err        error
		want       string // in the error; "" for none
	}{
		{"the same", "17", nil, ""},
		{"another namespace's", "4711", nil, "another pid namespace"},
		{"this process is not in it", "", fs.ErrNotExist, "mount one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := check(func(string) (string, error) { return tt.link, tt.err }, 17)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if err := CheckOwn(); err != nil {
		t.Error(err)
	}
}

func TestCheckClocks(t *testing.T) {
	for _, tt := range []struct {
		name, link string
		err        error
		ok         bool
	}{
		{"the first", "time:[4026531834]", nil, true},
		{"another", "time:[4026532001]", nil, false},
		{"a kernel without", "", fs.ErrNotExist, true},
		{"not to be told", "", fs.ErrPermission, false},
	} {
		if err := checkClocks(func(string) (string, error) { return tt.link, tt.err }); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := CheckClocks(); err != nil {
		t.Error(err)
	}
}
