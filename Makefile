# Cofferdam. `make help` lists the targets.
SHELL := /bin/bash
ARCH := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-gnu
PREFIX ?= /usr/local
DESTDIR ?=
# Root does without; on a user's machine set-up, demo and tests ask for a password.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Cargo builds as the user; what it built runs as root, since most tests mount, unshare or make links.
AS_ROOT := $(if $(SUDO),CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)_RUNNER="$(SUDO) -E")

# To build: a C compiler for the C parts of crates, and libseccomp, which the shim links statically.
BUILD_PACKAGES := gcc libc6-dev make pkg-config libseccomp-dev ca-certificates
# To run the demo and the tests: a registry, a root filesystem, real plugins and a real foreign shim, and what looks on.
PEER_PACKAGES := docker-registry busybox-static containernetworking-plugins containerd runc \
                 iproute2 nftables procps apache2-utils openssl e2fsprogs
# To boot virtual machines: for pods, and to run the main job on Debian's kernel and cgroup v2 alone.
VM_CACHE := $(or $(COFFERDAM_VM_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cofferdam-vm)
VM_PACKAGES := qemu-system-x86 kmod cpio busybox-static nftables

.PHONY: help build shim failpoints setup setup-build setup-vm vm-test vm-systemd vm-selinux vm-critest microvm-ten bench-vm arm64-build arm64-test arm64-boot demo demo-vm test unit e2e crash-matrix soak power-cut lint ci bench fuzz install clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | column -t -s "$$(printf '\t')"

# Tests need no fast programs of ours, only fast libraries below them: without optimizing our own largest crates, compiling takes
# a third of the time. Cargo leaves what it compiled so in target/release; PROGRAMS puts back what users get.
QUICK := --config 'profile.release.package.cofferdam.opt-level=0' --config 'profile.release.package.cofferdam-tests.opt-level=0'
PROGRAMS := cargo build --release --locked -p cofferdam -p cofferdam-netplugin -p cofferdam-tests --bins

build: setup-build shim ## the five binaries in target/release
	$(PROGRAMS)

# The shim is linked statically and at a fixed address: its pages are shared by all shims of the node, and as
# /pause it runs in an empty root filesystem. The agent is the first process of virtual machines.
shim:
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$(ARCH)-linux-gnu \
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	cargo build --profile shim --locked -p cofferdam-shim -p cofferdam-vm --bin containerd-shim-cofferdam-v1 \
	  --bin cofferdam-agent --target $(TARGET)
	mkdir -p target/release
	install target/$(TARGET)/shim/containerd-shim-cofferdam-v1 target/$(TARGET)/shim/cofferdam-agent target/release/

# The same daemon, plugin and shim with failpoints, for tests/tests/crash_matrix.rs: of the crates that hold one only these are
# built again, everything below is shared. Under names of their own, so that they never take the place of what is shipped.
FAILPOINTS := target/release/failpoints
failpoints: setup-build ## the binaries that tests kill at every step, in target/release/failpoints
	cargo build --release --locked $(QUICK) -p cofferdam --bin cofferdam-failpoints --features cofferdam/failpoints
	cargo build --release --locked -p cofferdam-netplugin --bin cofferdam-bridge-failpoints \
	  --features cofferdam-netplugin/failpoints
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$(ARCH)-linux-gnu \
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	cargo build --profile shim --locked -p cofferdam-shim --target $(TARGET) \
	  --bin containerd-shim-cofferdam-v1-failpoints --features cofferdam-shim/failpoints
	mkdir -p $(FAILPOINTS)
	install target/release/cofferdam-failpoints $(FAILPOINTS)/cofferdam
	install target/release/cofferdam-bridge-failpoints $(FAILPOINTS)/cofferdam-bridge
	install target/$(TARGET)/shim/containerd-shim-cofferdam-v1-failpoints \
	        $(FAILPOINTS)/containerd-shim-cofferdam-v1

setup-build: ## installs what the build needs and is missing
	@SUDO="$(SUDO)" tests/setup.sh $(BUILD_PACKAGES)

setup: setup-build ## installs what demo and tests need and is missing
	@SUDO="$(SUDO)" tests/setup.sh $(PEER_PACKAGES)

setup-vm: setup-build ## installs what virtual machines need and is missing, and unpacks a kernel for them
	@SUDO="$(SUDO)" tests/setup.sh $(VM_PACKAGES)
	@tests/vm/kernel.sh

demo: setup build ## a pod runs, on throwaway folders; leaves nothing behind
	$(SUDO) tests/demo.sh target/release

demo-vm: setup setup-vm build ## a pod with a kernel of its own, in a virtual machine, on throwaway folders; leaves nothing behind
	$(SUDO) COFFERDAM_VM_CACHE=$(VM_CACHE) tests/demo-vm.sh target/release

test: setup setup-vm build failpoints unit e2e ## all tests

# What runs in a guest is tested as it is built: statically, in the target folder of its own, so that what cargo builds for
# these tests never takes the place of what `make build` made.
unit: ## the tests of the crates; needs `make build`
	$(AS_ROOT) cargo test --release --locked $(QUICK) -p cofferdam -p cofferdam-netplugin -p cofferdam-proto
	$(PROGRAMS)
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$(ARCH)-linux-gnu \
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	COFFERDAM_GUEST_DIR=$(CURDIR)/target/release COFFERDAM_VM_CACHE=$(VM_CACHE) \
	$(AS_ROOT) cargo test --profile shim-test --locked -p cofferdam-shim -p cofferdam-vm --target $(TARGET)

# The tests of the shape and the licences belong to lint and need neither root nor a build of the daemon.
E2E := $(patsubst tests/tests/%.rs,--test %,$(filter-out %/arch.rs %/licences.rs,$(wildcard tests/tests/*.rs)))
e2e: ## the tests through the socket
	$(AS_ROOT) COFFERDAM_BIN_DIR=$(CURDIR)/target/release COFFERDAM_VM_CACHE=$(VM_CACHE) \
	SOAK_SECONDS=$(or $(SOAK_SECONDS),300) COFFERDAM_CRASH_SHARE=$(or $(COFFERDAM_CRASH_SHARE),8) \
	cargo test --release --locked $(QUICK) -p cofferdam-tests --lib --bins $(E2E)
	$(PROGRAMS)

# Some 600 deaths; CI tries every eighth.
crash-matrix: setup setup-vm build failpoints ## death and failure at every step of every operation (a quarter of an hour)
	$(AS_ROOT) COFFERDAM_BIN_DIR=$(CURDIR)/target/release COFFERDAM_VM_CACHE=$(VM_CACHE) \
	cargo test --release --locked $(QUICK) -p cofferdam-tests --test crash_matrix -- --nocapture
	$(PROGRAMS)

# The seed is printed; SEED=N does the same work again. The daemon's log of a failure is kept in target/soak.
SECONDS ?= 3600
soak: setup build ## random work on a node for SECONDS (an hour), with a look at everything after each round
	$(AS_ROOT) COFFERDAM_BIN_DIR=$(CURDIR)/target/release SOAK_SECONDS=$(SECONDS) SOAK_SEED=$(SEED) \
	cargo test --release --locked -p cofferdam-tests --test soak -- --nocapture

# Each cut is a disk of its own on which a daemon starts, some two seconds; CI does a few.
CUTS ?= 300
power-cut: setup build ## power cuts in the middle of pulls and creates, CUTS of them (SEED=N for the same again)
	$(AS_ROOT) COFFERDAM_BIN_DIR=$(CURDIR)/target/release POWER_CUTS=$(CUTS) POWER_SEED=$(SEED) \
	cargo test --release --locked -p cofferdam-tests --test powercut -- --nocapture

vm-test: setup-vm build ## the main job in a virtual machine with Debian's kernel and cgroup v2 (minutes)
	tests/vm/run.sh target/release

vm-systemd: setup-vm build ## the same with systemd keeping the cgroups, on v2, hybrid and v1
	@SUDO="$(SUDO)" tests/setup.sh systemd
	tests/vm/run.sh --systemd target/release
	tests/vm/run.sh --systemd --hybrid target/release
	tests/vm/run.sh --systemd --legacy target/release

vm-selinux: setup-vm build ## labels, categories and relabelled volumes under SELinux in that machine
	tests/vm/run.sh --selinux target/release

# Under emulation the whole suite takes a quarter of an hour; FOCUS and SKIP choose specs.
vm-critest: setup-vm build ## critest in that machine, with AppArmor; needs critest and a registry with its images
	COFFERDAM_VM_SECONDS=$${COFFERDAM_VM_SECONDS:-7200} \
	tests/vm/run.sh --critest $(if $(FOCUS),--focus '$(FOCUS)') $(if $(SKIP),--skip '$(SKIP)') target/release

# Not part of CI: a cross compiler is unpacked into a folder of its own (tests/arm64/tree.sh; 3 GB), and the first build takes
# as long as one for the own processor.
ARM64_PACKAGES := debootstrap busybox-static
arm64-build: setup-build ## compiles all of it for arm64, into target/arm64, on x86_64
	@SUDO="$(SUDO)" tests/setup.sh $(ARM64_PACKAGES)
	$(SUDO) tests/arm64/build.sh

arm64-test: arm64-build ## unit tests and the built programs for arm64, executed by qemu-user
	$(SUDO) tests/arm64/test.sh

arm64-boot: build ## a pod whose machine is an arm64 one, emulated
	@SUDO="$(SUDO)" tests/setup.sh $(ARM64_PACKAGES) qemu-system-arm qemu-system-common
	$(SUDO) tests/arm64/build.sh guest
	$(SUDO) tests/arm64/guest.sh
	$(SUDO) tests/arm64/boot.sh target/release

# Under emulation ten machines take minutes to boot.
microvm-ten: setup setup-vm build ## ten pods in virtual machines at once
	$(AS_ROOT) COFFERDAM_BIN_DIR=$(CURDIR)/target/release COFFERDAM_VM_CACHE=$(VM_CACHE) COFFERDAM_TEN_MACHINES=1 \
	cargo test --release --locked -p cofferdam-tests --test microvm_ten -- --nocapture

lint: ## formatting, clippy with warnings denied, licences
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo test --release --locked $(QUICK) -p cofferdam-tests --test licences --test arch

ci: test lint ## what CI runs

bench: setup build ## pods, containers, calls and memory, next to containerd where it is installed
	$(SUDO) tests/bench.sh target/release

bench-vm: setup setup-vm build ## pods in virtual machines: boot, memory, files, network
	$(SUDO) COFFERDAM_VM_CACHE=$(VM_CACHE) tests/bench-vm.sh target/release

# Not part of CI: it needs a nightly compiler and `cargo install cargo-fuzz`. CI replays the corpus and changes to it.
FUZZ_SECONDS ?= 600
FUZZ := $(patsubst cri-server/fuzz/fuzz_targets/%.rs,%,$(wildcard cri-server/fuzz/fuzz_targets/*.rs))
fuzz: ## the parsers of the streaming server under a fuzzer, FUZZ_SECONDS each
	cd cri-server && cargo +nightly fuzz build --target-dir ../target/fuzz
	cd cri-server && for target in $(FUZZ); do \
	  mkdir -p ../target/fuzz-corpus/$$target && \
	  cargo +nightly fuzz run --target-dir ../target/fuzz $$target ../target/fuzz-corpus/$$target \
	    fuzz/corpus/$$target -- -max_len=4096 -max_total_time=$(FUZZ_SECONDS) || exit; \
	done

# systemd looks for units of packages in /usr/lib, for those of the machine's owner in /usr/local/lib.
UNITDIR ?= $(PREFIX)/lib/systemd/system
install: ## the binaries in $(PREFIX)/bin, the unit in $(UNITDIR)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR)
	install target/release/cofferdam target/release/containerd-shim-cofferdam-v1 \
	        target/release/cofferdam-agent target/release/cofferdam-bridge target/release/cri-bench \
	        $(DESTDIR)$(PREFIX)/bin/
	sed 's#@BINDIR@#$(PREFIX)/bin#' cri-server/systemd/cofferdam.service.in > $(DESTDIR)$(UNITDIR)/cofferdam.service
	chmod 644 $(DESTDIR)$(UNITDIR)/cofferdam.service

clean: ## all that was built
	cargo clean
