package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// program is one that nobody here wrote: how it is started, and whom to kill.
type program struct {
	name string
	// script runs in bash, in a directory of its own and a session of its own,
	// and says "ready" when the rest of the machine may look.
	script string
	// kill selects the targets. @FILE stands for the number at the start of a
	// file that the script wrote.
	kill []string
	// asleep is how many processes of the session sleep in the end, at least.
	asleep int
}

const postgres = `
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
chown postgres . && as="setpriv --reuid=postgres --regid=postgres --clear-groups"
$as $(command -v initdb) -D data -A trust -U postgres --no-sync >log 2>&1 || { cat log; exit 1; }
$as postgres -D data -k "$PWD" -c listen_addresses= -c fsync=off -c autovacuum=off >>log 2>&1 &
until psql -h "$PWD" -U postgres -c 'select 1' >>log 2>&1; do kill -0 $! || { cat log; exit 1; }; sleep 0.1; done
mkfifo hold; sleep 1000 >hold &
for i in $(seq 50); do psql -h "$PWD" -U postgres <hold >>log 2>&1 & done
until [ "$(psql -h "$PWD" -U postgres -Atc "select count(*) from pg_stat_activity where datname is not null")" -gt 50 ]; do sleep 0.1; done
echo ready; wait`

const nginx = `
mkdir -p logs && cat >conf <<E
worker_processes 4; daemon off; pid $PWD/pid; error_log $PWD/log;
events { worker_connections 64; }
http { access_log off; server { listen unix:$PWD/sock; } }
E
nginx -p "$PWD" -c "$PWD/conf" & until [ -S sock ]; do sleep 0.1; done
echo ready; wait`

// The compilers wait for their sources.
const build = `
printf 'all: a.o b.o c.o d.o\n%%.o: %%.c ; clang-14 -c -o $@ $<\n' >Makefile
mkfifo a.c b.c c.c d.c && for f in *.c; do sleep 1000 >$f & done
make -j4 & echo ready; wait`

const pool = `/usr/bin/python3 -c 'import multiprocessing as m, os, time
if __name__ == "__main__":
    p = m.Pool(4); p.map(abs, range(100)); open("main", "w").write(str(os.getpid())); print("ready", flush=True); time.sleep(1000)' & wait`

// programs are ordinary ones, each with its own way to wait.
var programs = []program{
	{"pipeline/first", `sleep 1000 | cat | tr a b | sort & echo ready; wait`, []string{"--target", "^sleep$"}, 5},
	{"pipeline/last", `sleep 1000 | cat | tr a b | sort & echo ready; wait`, []string{"--target", "^sort$"}, 5},
	{"make -j", build, []string{"--target", "^clang-14$"}, 10},
	{"python pool/main", pool, []string{"--pid", "@main"}, 6},
	{"python pool/worker", pool, []string{"--parent", "@main"}, 6},
	{"postgres/all", postgres, []string{"--target", "^postgres$"}, 50},
	{"postgres/postmaster", postgres, []string{"--pid", "@data/postmaster.pid"}, 50},
	{"nginx/all", nginx, []string{"--target", "^nginx$"}, 6},
	{"nginx/master", nginx, []string{"--pid", "@pid"}, 6},
	{"tmux", `tmux -S sock -f /dev/null new-session -d 'cat' && tmux -S sock split-window 'sleep 1000' && tmux -S sock split-window cat
tmux -S sock display-message -p '#{pid}' >server; echo ready; sleep 1000`, []string{"--pid", "@server"}, 1},
	{"ssh-agent", `ssh-agent -D -a "$PWD/sock" >agent & until [ -S sock ]; do sleep 0.1; done
/usr/bin/python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect("sock"); print("ready", flush=True); s.recv(1)' & wait`,
		[]string{"--target", "^ssh-agent$"}, 3},
	{"tini as reaper", `mkfifo hold
tini -s -- bash -c 'sleep 1000 & sleep 1000 & (sleep 1000 & exec sleep 1000) & wait; cat hold' & echo ready; wait`, []string{"--target", "^sleep$"}, 6},
}

// TestPrograms kills a part of ordinary programs and compares who a dry run said would
// wake with who did. It needs Debian's packages of them: make programs.
func TestPrograms(t *testing.T) {
	nstest.Require(t)
	if os.Getenv("BPFKILL_TEST_PROGRAMS") != "1" {
		t.Skip("needs PostgreSQL, nginx, tmux and others: run it with make programs")
	}
	runs := numbers(t, "ACCURACY_RUNS", 3)[0]
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			var a accuracy
			for range runs {
				session, r := killProgram(t, p)
				withoutReaper(r)
				withoutAwake(r)
				a.add(&storm.Topology{Name: p.name, Channel: "other"}, p.name, r, func(int32) bool { return true })
				endSession(t, session)
			}
			t.Logf("\n%s", &a)
			a.check(t)
			measured := 0
			for _, row := range a.rows {
				measured += row.measured
			}
			if measured < runs {
				t.Errorf("%d kills, and %d wakes: each wakes somebody", runs, measured)
			}
		})
	}
}

// killProgram starts a program, kills a part of it, and returns what was measured beside
// what a dry run had predicted. A program that looks at its own every tenth of a second,
// as Python's pool does, may have gone on to sleep somewhere else since the dry run: that
// one is not compared, but another.
func killProgram(t *testing.T, p program) (session int, r *report.Report) {
	t.Helper()
	const tries = 10
	for try := range tries {
		dir, session := startProgram(t, p)
		args := []string{"--dependents", "none", "--output", "json"}
		for _, arg := range p.kill {
			if file, ok := strings.CutPrefix(arg, "@"); ok {
				arg = firstNumber(t, filepath.Join(dir, file))
			}
			args = append(args, arg)
		}
		dry := runBpfkill(t, append([]string{"--dry-run"}, args...)...)
		o := runBpfkill(t, args...)
		if dry.status != exitGone || o.status != exitGone {
			t.Fatalf("exit status %d and %d, stderr %q and %q", dry.status, o.status, dry.stderr, o.stderr)
		}
		if reflect.DeepEqual(o.report.Plan.Bystanders, dry.report.Plan.Bystanders) {
			return session, &o.report
		}
		t.Logf("try %d: the program has moved on between the dry run and the kill", try+1)
		endSession(t, session)
	}
	t.Fatalf("in none of %d tries had the kill the plan of the dry run before", tries)
	return 0, nil
}

// withoutAwake leaves out the parent-death signal of who was woken before by the files of
// the same death, as the plan said, too: a signal wakes nobody who is awake. Both are
// reasons for him to wake, and which one comes first is the kernel's business.
func withoutAwake(r *report.Report) {
	named := map[wokenThrough]bool{}
	for _, b := range r.Plan.Bystanders {
		named[wokenThrough{b.PID, b.Channel}] = true
	}
	awake, signalled := map[int32]bool{}, map[int32]bool{}
	for _, w := range r.Result.Wakes {
		if w.Channel == "parent-death" {
			signalled[w.PID] = true
		} else if named[wokenThrough{w.PID, w.Channel}] {
			awake[w.PID] = true
		}
	}
	r.Plan.Bystanders = slices.DeleteFunc(r.Plan.Bystanders, func(b report.Bystander) bool {
		return b.Channel == "parent-death" && awake[b.PID] && !signalled[b.PID]
	})
}

// withoutReaper leaves out the init of the namespace. It is told of those, too,
// who read of the death through a pipe and end on their own account: what user
// space does with what it is told is nobody's prediction.
func withoutReaper(r *report.Report) {
	r.Plan.Bystanders = slices.DeleteFunc(r.Plan.Bystanders, func(b report.Bystander) bool { return b.PID == 1 })
	r.Result.Wakes = slices.DeleteFunc(r.Result.Wakes, func(w report.Wake) bool { return w.PID == 1 })
}

// firstNumber is what a program wrote down about itself.
func firstNumber(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	number, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return number
}

// startProgram starts a program in a directory and a session of its own, and
// returns both once it sleeps.
func startProgram(t *testing.T, p program) (dir string, session int) {
	t.Helper()
	cmd := exec.Command("bash", "-c", p.script)
	cmd.Dir = t.TempDir()
	if err := os.Chmod(cmd.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for dir := cmd.Dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o777) // servers that give up their privileges live here
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endSession(t, cmd.Process.Pid)
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		t.Fatalf("%s: %q, %v", p.name, line, err)
	}
	go func() { _, _ = bufio.NewReader(out).ReadString(0) }()
	settleSession(t, cmd.Process.Pid, p.asleep)
	return cmd.Dir, cmd.Process.Pid
}

// member is one process of a session, as /proc shows it.
type member struct {
	pid      int
	state    byte
	switches string
}

func sessionMembers(session int) []member {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []member
	for _, dir := range dirs {
		b, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(after)
		if len(f) < 4 || f[3] != strconv.Itoa(session) || f[0] == "Z" {
			continue
		}
		status, _ := os.ReadFile(dir + "/status")
		_, switches, _ := strings.Cut(string(status), "voluntary_ctxt_switches")
		pid, _ := strconv.Atoi(filepath.Base(dir))
		out = append(out, member{pid, f[0][0], switches})
	}
	return out
}

// settleSession waits until all of a session sleep, and have slept since the
// look before: at least so many.
func settleSession(t *testing.T, session, least int) {
	t.Helper()
	before := ""
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		now, asleep := sessionMembers(session), 0
		for _, m := range now {
			if m.state == 'S' {
				asleep++
			}
		}
		text := fmt.Sprint(now)
		if asleep == len(now) && asleep >= least && text == before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the session does not settle: %d of %d asleep, want %d: %v", asleep, len(now), least, now)
		}
		before = text
	}
}

// endSession ends what is left of a session of this test's own.
func endSession(t *testing.T, session int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		left := sessionMembers(session)
		if len(left) == 0 {
			return
		}
		for _, m := range left {
			unix.Kill(m.pid, unix.SIGKILL)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes of session %d do not end", len(left), session)
		}
	}
}
