package target

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

const second = uint64(time.Second)

// proc is a living process of user 1000, in its own group and session,
// started a second after boot.
func proc(pid, ppid int32, comm string, change ...func(*waitgraph.Process)) waitgraph.Process {
	p := waitgraph.Process{
		Identity:  waitgraph.Identity{PID: pid, StartNS: second},
		KernelPID: pid + 100000,
		PPID:      ppid, PGID: pid, SID: pid, UID: 1000, EUID: 1000, SUID: 1000,
		Comm: comm, CgroupID: 1, State: 'S', Threads: 1,
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

// machine is the fixture of this file: a mail server, and bpfkill (pid 90)
// run from a shell through sshd.
func machine() []waitgraph.Process {
	return []waitgraph.Process{
		proc(1, 0, "systemd", func(p *waitgraph.Process) { p.NamespaceInit = true; p.UID, p.EUID = 0, 0 }),
		proc(2, 0, "kthreadd", func(p *waitgraph.Process) { p.KernelThread = true; p.UID, p.EUID = 0, 0 }),
		proc(10, 1, "smtpserver", func(p *waitgraph.Process) { p.PGID, p.SID = 10, 10; p.CgroupID = 50 }),
		proc(11, 10, "router", func(p *waitgraph.Process) { p.PGID, p.SID = 10, 10; p.CgroupID = 51 }),
		proc(12, 1, "smtpserver2", func(p *waitgraph.Process) { p.UID = 33; p.StartNS = 900 * second }),
		proc(13, 10, "smtpserver", func(p *waitgraph.Process) { p.State = 'Z'; p.Threads = 0 }),
		proc(14, 1, "very-long-named", func(p *waitgraph.Process) { p.EUID = 0; p.PGID, p.SID = 12, 12 }),
		proc(80, 1, "sshd"),
		proc(81, 80, "bash", func(p *waitgraph.Process) { p.SID, p.PGID = 80, 81 }),
		proc(90, 81, "bpfkill", func(p *waitgraph.Process) { p.SID, p.PGID = 80, 90 }),
		proc(91, 81, "less", func(p *waitgraph.Process) { p.SID, p.PGID = 80, 90 }),
		proc(0, 0, "smtpserver"), // outside the namespace
	}
}

var self = Self{
	PID:   90,
	NowNS: 1000 * second,
	Cmdline: func(pid int32) string {
		return map[int32]string{
			10: "/usr/sbin/smtpserver --listen 25 --name very-long-named-server",
			11: "router smtpserver", 12: "smtpserver2 -d", 81: "bash --listen",
		}[pid]
	},
	Cgroups: func(path string) ([]uint64, error) {
		switch path {
		case "/mail":
			return []uint64{50, 51}, nil
		case "/mail/routers":
			return []uint64{51}, nil
		}
		return nil, errors.New("no such cgroup")
	},
}

func users(name string) (uint32, error) {
	switch name {
	case "root":
		return 0, nil
	case "www-data":
		return 33, nil
	}
	return 0, errors.New("no such user")
}

func pids(procs []waitgraph.Process, indexes []int32) []int32 {
	out := []int32{}
	for _, i := range indexes {
		out = append(out, procs[i].PID)
	}
	return out
}

func TestSelect(t *testing.T) {
	names := func(n ...string) []string { return n }
	tests := []struct {
		what string
		o    Options
		want []int32
		not  string // the exclusions
	}{
		{"a name is searched", Options{Names: names("smtp")}, []int32{10, 12},
			"smtpserver[13] already dead (zombie), smtpserver[0] outside this pid namespace"},
		{"exact", Options{Names: names("smtpserver"), Exact: true}, []int32{10},
			"smtpserver[13] already dead (zombie), smtpserver[0] outside this pid namespace"},
		{"values of one flag widen", Options{Names: names("router", "smtpserver2")}, []int32{11, 12}, ""},
		{"different flags narrow", Options{Names: names("smtp"), UIDs: names("33")}, []int32{12}, ""},
		{"only 15 bytes are known", Options{Names: names("very-long-named-server")}, []int32{}, ""},
		{"15 bytes are matched exactly", Options{Names: names("very-long-named"), Exact: true}, []int32{14}, ""},
		{"the command line", Options{Names: names("--listen"), Full: true}, []int32{10}, "bash[81] ancestor of bpfkill"},
		{"the whole command line", Options{Names: names("router smtpserver"), Full: true, Exact: true}, []int32{11}, ""},
		{"no command line: the name", Options{Names: names("^very"), Full: true}, []int32{14}, ""},
		{"the dead have no command line", Options{Names: names("^smtpserver$"), Full: true}, []int32{},
			"smtpserver[13] already dead (zombie), smtpserver[0] outside this pid namespace"},
		{"pids", Options{PIDs: names("11,12", "14", "4242")}, []int32{11, 12, 14}, ""},
		{"parents", Options{Parents: names("10")}, []int32{11}, "smtpserver[13] already dead (zombie)"},
		{"effective user by name", Options{EUIDs: names("root")}, []int32{14},
			"systemd[1] init of a pid namespace, kthreadd[2] kernel thread"},
		{"real users", Options{UIDs: names("www-data,4")}, []int32{12}, ""},
		{"group", Options{PGroups: names("10,12")}, []int32{10, 11, 12, 14}, ""},
		{"group 0 is bpfkill's", Options{PGroups: names("0")}, []int32{91}, "bpfkill[90] bpfkill itself"},
		{"session 0 is bpfkill's", Options{Sessions: names("0")}, []int32{91},
			"sshd[80] ancestor of bpfkill, bash[81] ancestor of bpfkill, bpfkill[90] bpfkill itself"},
		{"session", Options{Sessions: names("10")}, []int32{10, 11}, ""},
		{"a cgroup and below", Options{Cgroups: names("/mail")}, []int32{10, 11}, ""},
		{"a cgroup below", Options{Cgroups: names("/mail/routers")}, []int32{11}, ""},
		{"older", Options{Names: names("smtpserver2"), OlderThan: 100 * time.Second}, []int32{12}, ""},
		{"not old enough", Options{Names: names("smtpserver2"), OlderThan: 101 * time.Second}, []int32{}, ""},
		{"ancestors are spared", Options{Names: names("sshd|bash|bpfkill|less")}, []int32{91},
			"sshd[80] ancestor of bpfkill, bash[81] ancestor of bpfkill, bpfkill[90] bpfkill itself"},
		{"init is spared", Options{PIDs: names("1,2")}, []int32{},
			"systemd[1] init of a pid namespace, kthreadd[2] kernel thread"},
		{"the protected are spared", Options{Names: names("smtp|router"), Protect: names("^router$", "2$")}, []int32{10},
			"router[11] protected by --protect, smtpserver2[12] protected by --protect, smtpserver[13] already dead (zombie), smtpserver[0] outside this pid namespace"},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			tt.o.LookupUser = users
			s, err := Compile(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			procs := machine()
			got, excluded, err := s.Select(procs, self)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(pids(procs, got), tt.want) {
				t.Errorf("selected %v, want %v", pids(procs, got), tt.want)
			}
			var not []string
			for _, e := range excluded {
				not = append(not, fmt.Sprintf("%v %v", &procs[e.Process], e.Reason))
			}
			if got := strings.Join(not, ", "); got != tt.not {
				t.Errorf("excluded %q, want %q", got, tt.not)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	tests := []struct {
		o    Options
		want string // in the error
	}{
		{Options{}, "no process selected"},
		{Options{Protect: []string{"sshd"}}, "no process selected"},
		{Options{Names: []string{""}}, `"" for --target`},
		{Options{Names: []string{"a("}}, `"a(" for --target`},
		{Options{Names: []string{"a"}, Protect: []string{"["}}, `"[" for --protect`},
		{Options{Names: []string{"a"}, Protect: []string{""}}, `"" for --protect`},
		{Options{Names: []string{"a"}, Protect: []string{"postgres-checkpointer"}}, "it protects nothing"},
		{Options{Names: []string{"a"}, Protect: []string{"sshd|systemd-journald"}}, "an alternative of it protects nothing"},
		{Options{Names: []string{"a"}, Protect: []string{"^(sshd|(cron|systemd-resolved))$"}}, "an alternative of it protects nothing"},
		{Options{Exact: true, PIDs: []string{"7"}}, "give --target"},
		{Options{PIDs: []string{"x"}}, `"x" for --pid`},
		{Options{PIDs: []string{"0"}}, `"0" for --pid`},
		{Options{PIDs: []string{"1,-2"}}, `"-2" for --pid`},
		{Options{PIDs: []string{"4294967297"}}, `"4294967297" for --pid`},
		{Options{PIDs: []string{""}}, `"" for --pid: empty`},
		{Options{Names: []string{"a|"}}, `"a|" for --target: it matches the empty text`},
		{Options{Names: []string{"x*"}}, `"x*" for --target: it matches the empty text`},
		{Options{Names: []string{"a"}, PIDs: []string{"1,"}}, `"1," for --pid: empty`},
		{Options{PGroups: []string{"a"}}, `"a" for --pgroup`},
		{Options{Sessions: []string{"1.5"}}, `"1.5" for --session`},
		{Options{Parents: []string{"-1"}}, `"-1" for --parent`},
		{Options{EUIDs: []string{"nobody-here"}}, `"nobody-here" for --euid: no such user`},
		{Options{UIDs: []string{"-1"}}, `"-1" for --uid`},
		{Options{Cgroups: []string{""}}, `"" for --cgroup`},
		{Options{OlderThan: -1}, "--older"},
	}
	for _, tt := range tests {
		tt.o.LookupUser = users
		_, err := Compile(tt.o)
		var usage *UsageError
		if !errors.As(err, &usage) {
			t.Errorf("%+v: error %v, want a UsageError", tt.o, err)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, want one line with %q", err, tt.want)
		}
	}
}

func TestNumbersNeedNoLookup(t *testing.T) {
	refuse := func(name string) (uint32, error) {
		t.Errorf("looked up %q", name)
		return 0, errors.New("no such user")
	}
	if _, err := Compile(Options{EUIDs: []string{"0,33"}, UIDs: []string{"4294967295"}, LookupUser: refuse}); err != nil {
		t.Fatal(err)
	}
}

func TestWarnings(t *testing.T) {
	tests := []struct {
		o    Options
		want []string
	}{
		{Options{Names: []string{"smtpserver"}}, nil},
		{Options{Names: []string{"smtpserver-for-incoming"}}, []string{"matches nothing"}},
		{Options{Names: []string{"smtpserver-for-incoming|b"}}, []string{"an alternative of it matches nothing"}},
		{Options{Names: []string{"smtpserver-for-incoming"}, Full: true}, []string{"paged in"}},
		{Options{Names: []string{"aaaaaaaaaaaaaaa"}, Exact: true}, nil},
		{Options{Names: []string{"aaaaaaaaaaaaaaaa"}, Exact: true}, []string{"matches nothing"}},
	}
	for _, tt := range tests {
		s, err := Compile(tt.o)
		if err != nil {
			t.Fatal(err)
		}
		got := s.Warnings()
		if len(got) != len(tt.want) {
			t.Errorf("%+v: warnings %q, want %q", tt.o, got, tt.want)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], tt.want[i]) {
				t.Errorf("%+v: warning %q, want %q in it", tt.o, got[i], tt.want[i])
			}
		}
	}
}

// Command lines live in the processes' own memory: one that another flag rules
// out must not be paged in for nothing.
func TestFullReadsOnlyCandidates(t *testing.T) {
	s, err := Compile(Options{Names: []string{"x"}, Full: true, Parents: []string{"10"}})
	if err != nil {
		t.Fatal(err)
	}
	var read []int32
	me := self
	me.Cmdline = func(pid int32) string { read = append(read, pid); return "" }
	if _, _, err := s.Select(machine(), me); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(read, []int32{11}) { // 13 is dead
		t.Errorf("command lines read: %v, want only 11", read)
	}
}

func TestSelectFails(t *testing.T) {
	byName, _ := Compile(Options{Names: []string{"."}})
	byCgroup, _ := Compile(Options{Cgroups: []string{"/nope"}})
	stranger := self
	stranger.PID = 4242
	if _, _, err := byName.Select(machine(), stranger); err == nil {
		t.Error("selected without knowing its own ancestors")
	}
	if _, err := byName.Protected(machine(), stranger); err == nil {
		t.Error("protected without knowing its own ancestors")
	}
	if _, _, err := byCgroup.Select(machine(), self); err == nil || !strings.Contains(err.Error(), `"/nope"`) {
		t.Errorf("error %v, want one that names the cgroup", err)
	}
}

// Whatever joins a kill set as a dependent must pass the same bars.
func TestProtected(t *testing.T) {
	s, err := Compile(Options{Names: []string{"nothing"}, Protect: []string{"^less$"}})
	if err != nil {
		t.Fatal(err)
	}
	procs := machine()
	got, err := s.Protected(procs, self)
	if err != nil {
		t.Fatal(err)
	}
	var barred []int32
	for i, p := range got {
		if p {
			barred = append(barred, procs[i].PID)
		}
	}
	if want := []int32{1, 2, 13, 80, 81, 90, 91, 0}; !slices.Equal(barred, want) {
		t.Errorf("protected %v, want %v", barred, want)
	}
}

func TestLoopOfParentsEnds(t *testing.T) {
	procs := []waitgraph.Process{proc(5, 6, "a"), proc(6, 5, "b"), proc(7, 5, "bpfkill")}
	s, _ := Compile(Options{Names: []string{"^[ab]$"}})
	me := self
	me.PID = 7
	got, excluded, err := s.Select(procs, me)
	if err != nil || len(got) != 0 || len(excluded) != 2 {
		t.Errorf("selected %v, excluded %v, error %v", got, excluded, err)
	}
}

func TestNotes(t *testing.T) {
	procs := machine()
	procs[2].Comm = "a\x1b[2J"
	got := Notes(procs, []Excluded{{1, ReasonKernelThread}, {2, ReasonProtected}, {5, ReasonDead}, {7, ReasonAncestor}, {9, ReasonSelf}})
	want := []string{
		"not killing a?[2J[10]: protected by --protect",
		"not killing sshd[80]: ancestor of bpfkill",
		"not killing 1 matching process: kernel thread",
		"not killing 1 matching process: already dead (zombie)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("notes %q, want %q", got, want)
	}
}
