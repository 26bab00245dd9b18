# Cofferdam. `make help` lists the targets.
SHELL := /bin/bash
ARCH := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-gnu

.PHONY: build shim

build: shim ## the four binaries in target/release
	cargo build --release --locked -p cofferdam -p cofferdam-netplugin -p cofferdam-tests --bins

# The shim is linked statically and at a fixed address: its pages are shared by all shims of the node, and as
# /pause it runs in an empty root filesystem.
shim:
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$(ARCH)-linux-gnu \
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	cargo build --profile shim --locked -p cofferdam-shim --target $(TARGET)
	mkdir -p target/release
	install target/$(TARGET)/shim/containerd-shim-cofferdam-v1 target/release/
