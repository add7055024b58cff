package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine says where and when the figures were taken.
func machine(w io.Writer) {
	var u unix.Utsname
	release := "an unknown kernel"
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	load, _ := os.ReadFile("/proc/loadavg")
	where := "on the machine itself"
	if cpuHas("hypervisor") {
		where = "in a virtual machine"
	}
	fmt.Fprintf(w, "%s, %d CPUs, %s; Linux %s; %s; load %s\n", cpuModel(), runtime.NumCPU(), where, release,
		time.Now().UTC().Format("2006-01-02"), strings.TrimSpace(string(load)))
}

func cpuModel() string { return cpuField("model name") }

func cpuHas(flag string) bool {
	return strings.Contains(" "+cpuField("flags")+" ", " "+flag+" ")
}

// cpuField is what /proc/cpuinfo says of the first CPU.
func cpuField(name string) string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
