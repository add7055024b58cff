# bpfkill: build, test, try.
#
#   make build      bin/bpfkill and bin/wakestorm (Go alone: the BPF objects are committed)
#   make demo       the mail-server incident, killed in a private pid namespace (root)
#   make test       everything: formats, linters, drift of generated files, tests, VM tests
#   make vmtest     the privileged tests under four kernels in QEMU
#   make vmtest-fault   the same with the tripwire disabled: every kernel must turn red
#                   VMTEST_KERNELS=bookworm,6.12,/path/bzImage   which kernels
#                   VMTEST_PACKAGES=./internal/storm,…            which tests
#                   VMTEST_ARGS="-test.run=X -test.count=20"    how to run them
#                   VMTEST_ENV="NAME=value" VMTEST_LIMIT=30m      their environment, and how long each may take
#                   VMTEST_JOBS=2 VMTEST_MEMORY_MIB=768           how many at once, and how large
#                   VMTEST_ACCEL=kvm, VMTEST_TAGS=…, VMTEST_APPEND="kernel parameters"
#                   VMTEST_CACHE=DIR     where kernels are kept (default: bpfkill in the user's cache)
#                   VMTEST_STRICT=1      a test that fails once has failed: it is not run again alone
#                   VMTEST_CONSOLE=DIR   write each guest's console there as it comes
#   make vmtest-arm64   the same under emulated arm64 kernels (a quarter of an hour)
#   make vmtest-scale   10,000 processes; a cgroup of 64 MiB; 20 MiB left: in machines of 2 GiB
#   make incident   the incident, staged with a swap disk in fresh machines: tables and picture of docs/incident.md
#                   (115 boots: a little more than an hour on two processors)
#                   INCIDENT_RUNS=5 INCIDENT_KERNELS=6.1,6.12,7 INCIDENT_STRATEGIES=all
#                   INCIDENT_ARM64_KERNELS=6.12 INCIDENT_ARM64_STRATEGIES=servers,bpfkill
#                   INCIDENT_CPUS=2 INCIDENT_MEMORY_MIB=512 INCIDENT_SERVERS=128 INCIDENT_ROUTER_MIB=8
#   make incident-plot   tables and picture again, from the results that are there
#   make accuracy   kill every topology and compare who was said to wake with who did (root; two hours and a half,
#                   nearly all of it for the 300)
#                   ACCURACY_RUNS=20 ACCURACY_SIZES=1,10,300   how often, and how large
#                   ACCURACY_LOADS=idle,busy                   what else the CPUs do
#                   ACCURACY_TOPOLOGY=herd                     only one
#                   ACCURACY_TOGETHER=0                        kill each by itself, not many side by side at once
#                   ACCURACY_KERNELS=bookworm,6.12             in guests, instead of on this kernel
#   make programs   the same with PostgreSQL, nginx, tmux and others (root; installs them)
#   make generate   compile bpf/ and write internal/loader's generated files
#   make dist       release binaries for amd64 and arm64, and their SHA-256 sums, in dist/
#                   DIST_VERSION=v1.0
#   make distcheck  builds them from two directories and compares
#   make lint       the checks of make test that run nothing
#   make bench      kills by bpfkill and by others, beside each other: the table of docs/performance.md (root)
#                   BENCH="--runs 20 --parts kill,start"       see wakestorm --help
#   make bench-go   the Go benchmarks
#   make install    PREFIX=/usr/local, DESTDIR=
#   make setup      say and install what building and testing need (Debian)
#   make clean      remove bin/ and dist/

SHELL  := /bin/bash
comma  := ,
PREFIX ?= /usr/local
GO     ?= go

# Four kernels, two at a time; each boot has its own limit.
VMTEST_TIMEOUT ?= 75m
TEST_TIMEOUT   ?= 20m

INCIDENT_RUNS       ?= 5
INCIDENT_KERNELS    ?= 6.1,6.12,7
INCIDENT_STRATEGIES ?= all
INCIDENT_ARM64_KERNELS    ?= 6.12
INCIDENT_ARM64_STRATEGIES ?= servers,bpfkill
INCIDENT_RESULTS    := $(CURDIR)/docs/incident.jsonl
INCIDENT_NEW        := $(CURDIR)/bin/incident
INCIDENT_TEST := INCIDENT_RUNS=$(INCIDENT_RUNS) $(GO) test ./vmtests -count=1 -run TestIncident -v -timeout 10h
INCIDENT_PLOT := bin/wakestorm plot --results $(INCIDENT_RESULTS) --document docs/incident.md --picture docs/incident

ACCURACY_RUNS     ?= 20
ACCURACY_SIZES    ?= 1,10,300
ACCURACY_LOADS    ?= idle,busy
ACCURACY_TOGETHER ?= 1
ACCURACY       := ACCURACY_RUNS=$(ACCURACY_RUNS) ACCURACY_SIZES=$(ACCURACY_SIZES) ACCURACY_LOADS=$(ACCURACY_LOADS) \
	ACCURACY_TOPOLOGY=$(ACCURACY_TOPOLOGY) ACCURACY_TOGETHER=$(ACCURACY_TOGETHER)

.PHONY: all build generate test lint fmtcheck vet drift unit vmtest vmtest-fault vmtest-arm64 vmtest-scale kernels \
	incident incident-plot dist distcheck accuracy programs demo bench bench-go install setup clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/bpfkill ./cmd/wakestorm

dist:
	@scripts/dist

distcheck:
	@scripts/distcheck

generate:
	$(GO) generate ./...

# The stages of the test, in their order, with a line for each.
test:
	@scripts/test

setup:
	@scripts/setup

lint: fmtcheck vet

fmtcheck:
	@scripts/fmtcheck

vet:
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The committed objects are what this tree's sources give.
drift:
	@scripts/drift || [ $$? -eq 77 ]

unit:
	$(GO) test -race -timeout $(TEST_TIMEOUT) ./...

kernels:
	$(GO) run ./vmtests/kernels

# The incident with it, twice: `kill -9` of the servers and bpfkill, in a machine small
# enough for a run of every day; not where only some kernels or tests are asked for.
# VMTEST_JOBS bounds the machines, not -parallel.
vmtest: kernels
	VMTEST=1 INCIDENT_MEMORY_MIB=384 INCIDENT_SERVERS=96 \
		$(GO) test ./vmtests -count=1 -parallel 8 -run 'TestKernels$(if $(VMTEST_KERNELS)$(VMTEST_PACKAGES),,|TestIncident)' \
		-v -timeout $(VMTEST_TIMEOUT)

vmtest-fault: kernels
	VMTEST=1 VMTEST_FAULT=1 $(GO) test ./vmtests -count=1 -run TestKernels -v -timeout $(VMTEST_TIMEOUT)

accuracy:
ifdef ACCURACY_KERNELS
	$(GO) run ./vmtests/kernels $(subst $(comma), ,$(ACCURACY_KERNELS)) 6.1
	VMTEST=1 VMTEST_STRICT=1 VMTEST_KERNELS=$(ACCURACY_KERNELS) VMTEST_PACKAGES=./cmd/bpfkill VMTEST_MEMORY_MIB=2048 \
		VMTEST_ARGS="-test.run=^TestAccuracy$$" VMTEST_LIMIT=12h VMTEST_ENV="$(ACCURACY)" \
		$(GO) test ./vmtests -count=1 -parallel 8 -run TestKernels -v -timeout 48h
else
	$(ACCURACY) $(GO) test ./cmd/bpfkill -count=1 -run '^TestAccuracy$$' -v -timeout 6h
endif

# Installed without starting anything.
programs:
	RUNLEVEL=1 scripts/setup bash clang-14 make nginx-light openssh-client postgresql python3 tini tmux
	BPFKILL_TEST_PROGRAMS=1 $(GO) test ./cmd/bpfkill -count=1 -run '^TestPrograms$$' -v -timeout 30m

vmtest-arm64:
	VMTEST_ARCH=arm64 scripts/setup
	VMTEST_ARCH=arm64 $(GO) run ./vmtests/kernels $(subst $(comma), ,$(VMTEST_KERNELS)) 6.1 6.12 7
	VMTEST=1 VMTEST_ARCH=arm64 VMTEST_KERNELS=$(or $(VMTEST_KERNELS),6.12$(comma)7) \
		$(GO) test ./vmtests -count=1 -run TestKernels -v -timeout $(VMTEST_TIMEOUT)

vmtest-scale: kernels
	VMTEST=1 VMTEST_MEMORY_MIB=2048 VMTEST_JOBS=1 VMTEST_PACKAGES=./vmtests/scale \
		$(GO) test ./vmtests -count=1 -run TestKernels -v -timeout 90m

incident: build
	VMTEST_ARCH=amd64 scripts/setup
	VMTEST_ARCH=amd64 $(GO) run ./vmtests/kernels $(subst $(comma), ,$(INCIDENT_KERNELS)) 6.1
	VMTEST_ARCH=arm64 scripts/setup
	VMTEST_ARCH=arm64 $(GO) run ./vmtests/kernels $(subst $(comma), ,$(INCIDENT_ARM64_KERNELS)) 6.1
	rm -f $(INCIDENT_NEW).*.jsonl
	export VMTEST=1 VMTEST_ARCH=amd64 INCIDENT_RESULTS=$(INCIDENT_NEW).amd64.jsonl \
		INCIDENT_KERNELS=$(INCIDENT_KERNELS) INCIDENT_STRATEGIES=$(INCIDENT_STRATEGIES); $(INCIDENT_TEST); status=$$?; \
	export VMTEST_ARCH=arm64 INCIDENT_RESULTS=$(INCIDENT_NEW).arm64.jsonl \
		INCIDENT_KERNELS=$(INCIDENT_ARM64_KERNELS) INCIDENT_STRATEGIES=$(INCIDENT_ARM64_STRATEGIES); $(INCIDENT_TEST) || status=$$?; \
	cat $(INCIDENT_NEW).amd64.jsonl $(INCIDENT_NEW).arm64.jsonl > $(INCIDENT_NEW).jsonl && \
	mv $(INCIDENT_NEW).jsonl $(INCIDENT_RESULTS) && $(INCIDENT_PLOT) && exit $$status

incident-plot: build
	$(INCIDENT_PLOT)

demo: build
	@scripts/demo

bench: build
	bin/wakestorm bench $(BENCH)

bench-go:
	$(GO) test -run '^$$' -bench . -benchmem ./...

install: build
	install -D -m 0755 bin/bpfkill $(DESTDIR)$(PREFIX)/bin/bpfkill
	install -D -m 0755 bin/wakestorm $(DESTDIR)$(PREFIX)/bin/wakestorm

clean:
	rm -rf bin dist
