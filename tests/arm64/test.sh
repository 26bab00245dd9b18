#!/usr/bin/env bash
# The arm64 programs that build.sh made and some of the unit tests, executed by qemu-user: what touches no privileged part
# of the kernel, as the kernel is the x86_64 machine's.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
bin=target/arm64/aarch64-unknown-linux-gnu/debug
run() { echo "> $*"; "$here/enter.sh" qemu-aarch64 "$@"; }
fail() { echo "FAIL $*" >&2; exit 1; }

run $bin/cofferdam --version
run $bin/containerd-shim-cofferdam-v1 -v
run $bin/cofferdam config default > /dev/null || fail "the configuration is not printed"
CNI_COMMAND=VERSION run $bin/cofferdam-bridge < /dev/null

export RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" LIBSECCOMP_LINK_TYPE=static
"$here/enter.sh" cargo test -j "${JOBS:-$(nproc)}" --locked --target aarch64-unknown-linux-gnu --lib \
    -p cofferdam-proto -p cofferdam-vm -p cofferdam-netplugin
