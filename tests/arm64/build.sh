#!/usr/bin/env bash
# Compiles for arm64 into target/arm64: what runs in guests, then, unless `guest` is all that is asked for, what runs on
# nodes. All of it statically, so that it is compiled once and runs anywhere. Without optimisation and debug information:
# this shows that it compiles and works, not how fast it is.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
export RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" LIBSECCOMP_LINK_TYPE=static
build() {
    "$here/enter.sh" cargo build -j "${JOBS:-$(nproc)}" --locked --target aarch64-unknown-linux-gnu "$@"
}
build -p cofferdam-shim -p cofferdam-vm --bin containerd-shim-cofferdam-v1 --bin cofferdam-agent
[ "${1:-}" = guest ] && exit
build -p cofferdam -p cofferdam-netplugin --bin cofferdam --bin cofferdam-bridge
