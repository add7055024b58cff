package bench

import (
	"errors"
	"os/exec"
	"runtime"
)

// hogsPerCPU is how many processes want each CPU, beside those that are measured.
const hogsPerCPU = 4

// busy measures some strategies while others want the processors, as on a machine
// that somebody wants to kill something on.
func (l *lab) busy(add func(Sample) error) (err error) {
	var hogs []*exec.Cmd
	defer func() {
		for _, h := range hogs {
			err = errors.Join(err, h.Process.Kill())
			h.Wait() // it was killed, and says so
		}
	}()
	for range hogsPerCPU * runtime.NumCPU() {
		h := exec.Command("sh", "-c", "while :; do :; done")
		if err := h.Start(); err != nil {
			return err
		}
		hogs = append(hogs, h)
	}
	return l.inTurns(PartBusy, l.chosen([]string{pkill, "pgid", groupFIFO, cgroupKill, ours}), []int{size}, add)
}
