package report

import "fmt"

// bystandersCost says what the woken bystanders did until they slept again,
// where anybody was followed that far.
func (t *text) bystandersCost() {
	var followed, woken, returns, faults, swapIns, cpu uint64
	counted := true
	for _, w := range t.r.Result.Wakes {
		if w.Killed {
			continue
		}
		woken += w.Count
		followed += w.Followed
		returns += w.UserReturns
		faults += w.MajorFaults
		cpu += w.CPUNS
		if w.SwapIns == nil {
			counted = false
		} else {
			swapIns += *w.SwapIns
		}
	}
	if followed == 0 {
		return
	}
	line := fmt.Sprintf("CPU time; %s to user mode, %s", count(returns, "return", "returns"), count(faults, "major fault", "major faults"))
	if counted {
		line += ", " + count(swapIns, "swap-in", "swap-ins")
	}
	if followed < woken {
		line += fmt.Sprintf("; %d of %s not over yet", woken-followed, count(woken, "wake", "wakes"))
	}
	t.row("until they slept again", humanNS(cpu), "%s", line)
}
