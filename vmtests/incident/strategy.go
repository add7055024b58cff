package incident

import (
	"fmt"
	"slices"
	"strings"
)

// Strategy is one way of killing.
type Strategy struct {
	Name  string
	Title string // for tables and pictures
	// Args are bpfkill's; nil where something else kills.
	Args []string
	// Routers says that the routers are to die, too.
	Routers bool
}

// Strategies are all there are, in the order in which tables list them.
var Strategies = []Strategy{
	{Name: "servers", Title: "kill -9, servers only"},
	{Name: "pkill", Title: "pkill -9, both names", Routers: true},
	{Name: "routers-first", Title: "kill -9, routers first", Routers: true},
	{Name: "cgroup.kill", Title: "cgroup.kill", Routers: true},
	{Name: "bpfkill-none", Title: "bpfkill --dependents none", Args: []string{"--dependents", "none"}},
	{Name: "bpfkill-no-corral", Title: "bpfkill --corral off", Args: []string{"--corral", "off"}, Routers: true},
	{Name: "bpfkill", Title: "bpfkill", Args: []string{}, Routers: true},
}

// Lookup finds a strategy by name.
func Lookup(name string) (*Strategy, error) {
	i := slices.IndexFunc(Strategies, func(s Strategy) bool { return s.Name == name })
	if i >= 0 {
		return &Strategies[i], nil
	}
	var names []string
	for _, s := range Strategies {
		names = append(names, s.Name)
	}
	return nil, fmt.Errorf("unknown strategy %q: one of %s", name, strings.Join(names, ", "))
}

// Parameter is the kernel command-line parameter that says what to stage:
// strategy, number of servers, MiB of each router.
const Parameter = "vmtest.incident"

// Staging is what the parameter says.
type Staging struct {
	Strategy  string
	Servers   int
	RouterMiB int
}

func (s Staging) String() string {
	return fmt.Sprintf("%s=%s:%d:%d", Parameter, s.Strategy, s.Servers, s.RouterMiB)
}

// StagingOf finds the parameter in a kernel command line.
func StagingOf(commandLine string) (s Staging, found bool, err error) {
	for _, word := range strings.Fields(commandLine) {
		value, ok := strings.CutPrefix(word, Parameter+"=")
		if !ok {
			continue
		}
		parts := strings.SplitN(value, ":", 2)
		if s.Strategy = parts[0]; len(parts) < 2 {
			return s, true, fmt.Errorf("%s: want STRATEGY:SERVERS:MIB", word)
		}
		if _, err := fmt.Sscanf(parts[1], "%d:%d", &s.Servers, &s.RouterMiB); err != nil {
			return s, true, fmt.Errorf("%s: want STRATEGY:SERVERS:MIB: %w", word, err)
		}
		return s, true, nil
	}
	return s, false, nil
}
