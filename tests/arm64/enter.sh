#!/usr/bin/env bash
# enter.sh COMMAND...: runs it in the tree that tree.sh makes, as the owner of this source, in this source's folder (with
# all else of it at the same path), with the user's downloaded crates. What it mounts is its own and goes with it.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
source=$(realpath "$here/../..")
if [ -z "${CF_ARM64_TREE:-}" ]; then
    [ "$(id -u)" = 0 ] || { echo "the tree for arm64 is entered by root" >&2; exit 1; }
    CF_ARM64_TREE=$("$here/tree.sh")
    CF_ARM64_REGISTRY=${CARGO_HOME:-$HOME/.cargo}/registry
    export CF_ARM64_TREE CF_ARM64_REGISTRY
    exec unshare --mount --propagation private "$0" "$@"
fi
tree=$CF_ARM64_TREE
mkdir -p "$tree$source" "$tree/cargo/registry"
mount --bind "$source" "$tree$source"
# Where crates were downloaded already, they are not again.
if [ -d "$CF_ARM64_REGISTRY" ]; then
    mount --bind "$CF_ARM64_REGISTRY" "$tree/cargo/registry"
else
    chown "$(stat -c %u:%g "$source")" "$tree/cargo" "$tree/cargo/registry"
fi
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
cp /etc/resolv.conf "$tree/etc/resolv.conf"
# Everything that the cross compilers have to be told is told here, so that a command is the same as without them.
upper=AARCH64_UNKNOWN_LINUX_GNU lower=aarch64_unknown_linux_gnu
exec env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/tmp CARGO_HOME=/cargo TERM="${TERM:-dumb}" \
    CARGO_TARGET_DIR="$source/target/arm64" CARGO_TARGET_${upper}_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_${upper}_RUNNER=qemu-aarch64 CC_$lower=aarch64-linux-gnu-gcc AR_$lower=aarch64-linux-gnu-ar \
    PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_PATH=/usr/lib/aarch64-linux-gnu/pkgconfig \
    ${RUSTFLAGS:+RUSTFLAGS="$RUSTFLAGS"} ${CARGO_NET_OFFLINE:+CARGO_NET_OFFLINE="$CARGO_NET_OFFLINE"} \
    LIBSECCOMP_LINK_TYPE="${LIBSECCOMP_LINK_TYPE:-dylib}" LIBSECCOMP_LIB_PATH=/usr/lib/aarch64-linux-gnu \
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 \
    chroot --userspec="$(stat -c %u:%g "$source")" "$tree" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$source" "$@"
