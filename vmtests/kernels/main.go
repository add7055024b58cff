// Command kernels fetches the Debian cloud kernels that the VM tests boot and
// prints their exact versions, and a QEMU for machines whose clock counts
// instructions, if the machine's own is too old for that. Nothing is installed: packages are unpacked
// into the cache directory ($VMTEST_CACHE, else bpfkill/kernels under the
// user's cache directory).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"

	"github.com/bpfkill/bpfkill/vmtests"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("kernels", flag.ExitOnError)
	update := flags.Bool("update", false, "fetch again what is cached")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: kernels [-update] [suite|series …]")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	spec := os.Getenv("VMTEST_KERNELS")
	for i, word := range flags.Args() {
		if i == 0 {
			spec = word
		} else {
			spec += "," + word
		}
	}
	chosen, err := vmtests.Select(spec)
	if err != nil {
		return err
	}
	arch, err := vmtests.SelectedArch()
	if err != nil {
		return err
	}
	cache, err := vmtests.OpenCache(arch)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for _, k := range chosen {
		how := "cached"
		kernel, err := cache.Load(k)
		if *update || errors.Is(err, vmtests.ErrNotCached) {
			how = "fetched"
			if kernel, err = cache.Fetch(ctx, k); err != nil {
				err = fmt.Errorf("%s is not in %s and cannot be fetched (is there a network? "+
					"VMTEST_KERNELS=/path/to/bzImage takes a kernel that is there): %w", k, cache.Dir, err)
			}
		}
		if err != nil {
			return err
		}
		fmt.Printf("%-8s %s\n", how, kernel)
	}
	emulator, err := cache.Emulator(ctx)
	how := "present"
	if errors.Is(err, vmtests.ErrNotCached) || *update && err == nil && emulator.Data != nil {
		how = "fetched"
		emulator, err = cache.FetchEmulator(ctx)
	}
	if err != nil {
		err = fmt.Errorf("an emulator that counts instructions: %w", err)
		if slices.ContainsFunc(chosen, func(k vmtests.Kernel) bool { return k.Suite != "" }) {
			return err
		}
		fmt.Fprintf(os.Stderr, "kernels: %v; make incident needs it, the tests of given kernels do not\n", err)
		return nil
	}
	fmt.Printf("%-8s %s\n", how, emulator)
	return nil
}
