package target

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// inNamespace marks the copy of the test that is pid 1 of its own namespace.
const inNamespace = "TARGET_TEST_IN_PID_NAMESPACE"

// TestSamePIDsAsPgrep runs pgrep and a Selector over the same processes. They
// live in a pid namespace of their own, so that nothing else is selected and
// all end with the test.
func TestSamePIDsAsPgrep(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		comparePgrep(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("a pid namespace with its own /proc needs root")
	}
	if out, err := exec.Command("pgrep", "--version").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("procps")) {
		t.Skipf("no pgrep of procps to compare with: %v", err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSamePIDsAsPgrep$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func comparePgrep(t *testing.T) {
	if os.Getpid() != 1 {
		t.Fatalf("pid %d in its own namespace", os.Getpid())
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	// A group inherited from outside has no number here.
	if _, err := syscall.Setsid(); err != nil {
		t.Fatal(err)
	}
	pids := startFixtures(t)
	tests := [][]string{
		{"smtp"}, {"-x", "smtp"}, {"-x", "smtpserver"}, {"^router$"}, {"router|smtpserver"}, {"-x", "r[[:alpha:]]+"},
		{"very-long-named"}, {"-x", "very-long-named"}, {"very-long-named-server"}, {"-f", "very-long-named-server"},
		{"-f", "router.* 1000$"}, {"-x", "-f", "router"}, {"nothing"}, {"."}, {"-f", "."},
		{"-u", "nobody"}, {"-u", "0"}, {"-U", "nobody,root"}, {"-u", "nobody", "smtp"}, {"-U", "root", "router"},
		{"-P", "1"}, {"-P", fmt.Sprint(pids[0])}, {"-P", fmt.Sprintf("%d,1", pids[0])}, {"-P", "0"},
		{"-g", "0"}, {"-s", "0"}, {"-g", fmt.Sprint(pids[1])}, {"-s", fmt.Sprint(pids[2])}, {"-g", fmt.Sprint(pids[1]), "router"},
		{"-O", "1"}, {"-O", "100000"},
	}
	for _, args := range tests {
		want, pgrep := runPgrep(t, args)
		got := runSelector(t, args, pgrep)
		if !slices.Equal(got, want) {
			t.Errorf("%q: selected %v, pgrep selects %v", args, got, want)
		}
	}
}

// startFixtures starts sleepers of several names, users, groups and sessions.
func startFixtures(t *testing.T) []int {
	dir, err := os.MkdirTemp("", "target-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // nobody runs one of them
		t.Fatal(err)
	}
	nobody, err := LookupUser("nobody")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range []struct {
		name string
		attr syscall.SysProcAttr
	}{
		{"smtpserver", syscall.SysProcAttr{}},
		{"router", syscall.SysProcAttr{Setpgid: true}},
		{"router", syscall.SysProcAttr{Setsid: true}},
		{"smtpserver2", syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}},
		{"very-long-named-server", syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: nobody}}},
	} {
		path := filepath.Join(dir, f.name)
		if err := copyProgram("/bin/sleep", path); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "1000")
		cmd.Args[0] = f.name
		cmd.SysProcAttr = &f.attr
		if err := cmd.Start(); err != nil { // returns once exec has set the name
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		pids = append(pids, cmd.Process.Pid)
	}
	return pids
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// runPgrep returns what pgrep prints, and its own pid.
func runPgrep(t *testing.T, args []string) ([]int32, int) {
	cmd := exec.Command("pgrep", args...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("pgrep %q: %v", args, err)
	}
	pids := []int32{}
	for _, field := range strings.Fields(string(out)) {
		pid, err := strconv.ParseInt(field, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, int32(pid))
	}
	return pids, cmd.Process.Pid
}

// runSelector returns what pgrep's arguments select, in its notation. What is
// excluded for safety counts as selected: pgrep has no such bars.
func runSelector(t *testing.T, args []string, pgrep int) []int32 {
	o := Options{LookupUser: LookupUser}
	lists := map[string]*[]string{"-u": &o.EUIDs, "-U": &o.UIDs, "-P": &o.Parents, "-g": &o.PGroups, "-s": &o.Sessions}
	for i := 0; i < len(args); i++ {
		switch list := lists[args[i]]; {
		case list != nil:
			i++
			*list = append(*list, args[i])
		case args[i] == "-x":
			o.Exact = true
		case args[i] == "-f":
			o.Full = true
		case args[i] == "-O":
			i++
			seconds, _ := strconv.Atoi(args[i])
			o.OlderThan = secondsOf(seconds)
		default:
			o.Names = append(o.Names, args[i])
		}
	}
	s, err := Compile(o)
	if err != nil {
		t.Fatal(err)
	}
	procs := readProcesses(t)
	selected, excluded, err := s.Select(procs, Self{PID: int32(os.Getpid()), NowNS: bootTime(t), Cmdline: Cmdline})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range excluded {
		selected = append(selected, e.Process)
	}
	got := pids(procs, selected)
	got = slices.DeleteFunc(got, func(pid int32) bool { return int(pid) == pgrep })
	slices.Sort(got)
	return got
}
