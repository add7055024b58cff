package report

import "testing"

func TestHumanBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB",
		11*gib + 8*gib/10: "11.8 GiB", 1 << 40: "1.0 TiB", 1<<64 - 1: "16384.0 PiB",
	} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestHumanNS(t *testing.T) {
	for ns, want := range map[uint64]string{
		0: "0 ns", 999: "999 ns", 1000: "1.0 µs", 31_400: "31 µs", 999_499: "999 µs", 999_500: "1.0 ms", 4_600_000: "4.6 ms",
		9_949_999: "9.9 ms", 9_950_000: "10 ms", 212_000_000: "212 ms", 999_500_000: "1.0 s", 61_250_000_000: "61.2 s",
	} {
		if got := humanNS(ns); got != want {
			t.Errorf("%d: %q, want %q", ns, got, want)
		}
	}
}

func TestCapped(t *testing.T) {
	items := []string{"a", "b", "c"}
	for limit, want := range map[int]string{3: "a, b, c", 2: "a, b, 1 more", 10: "a, b, c"} {
		if got := capped(items, limit, ", "); got != want {
			t.Errorf("limit %d: %q, want %q", limit, got, want)
		}
	}
}
