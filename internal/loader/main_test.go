package loader

import (
	"fmt"
	"os"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
)

// roleVariable makes this binary a staged process instead of the tests.
const roleVariable = "BPFKILL_LOADER_ROLE"

func TestMain(m *testing.M) {
	if name := os.Getenv(roleVariable); name != "" {
		if err := roles[name](); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(nstest.Main(m))
}
