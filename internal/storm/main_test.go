package storm

import (
	"os"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
)

// Nothing here needs root; a namespace merely keeps what a failing test leaves
// behind from staying, and reaps the forker's orphans.
func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }
