// Package bpfkill holds the lines that generate the BPF objects.
package bpfkill

//go:generate go tool bpf2go -output-dir internal/loader -go-package loader -target bpfel -type process_record -type descriptor_record -type sleeper_record -type link_record snapshot bpf/snapshot.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -Ibpf
//go:generate go tool bpf2go -output-dir internal/loader -go-package loader -target bpfel -type deliver_args -type thread_record -type mapping_record execute bpf/execute.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -Ibpf
//go:generate go tool bpf2go -output-dir internal/loader -go-package loader -target bpfel observe bpf/observe.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -Ibpf
//go:generate go tool bpf2go -output-dir internal/loader -go-package loader -target bpfel watch bpf/watch.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -Ibpf
//go:generate go tool bpf2go -output-dir internal/loader -go-package loader -target bpfel stopwatch bpf/stopwatch.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -Ibpf
