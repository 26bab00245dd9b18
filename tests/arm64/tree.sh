#!/usr/bin/env bash
# Makes a Debian 13 tree that compiles this project for arm64 on an x86_64 machine, when it is not there, and prints its
# folder: Rust's and C's cross compilers, and the arm64 libraries that both link. It takes 3 GB and some two minutes.
# Nothing of the machine is changed but that folder. Needs root and debootstrap.
set -euo pipefail
cache=${COFFERDAM_ARM64_CACHE:-/var/cache/cofferdam-arm64}
tree=$cache/tree
# Changes with what the tree is made of, so that an older one is made again.
version=1
mirror=${COFFERDAM_DEBIAN_MIRROR:-http://deb.debian.org/debian}
# To run what was compiled: qemu-user.
packages=(ca-certificates gcc libc6-dev make pkg-config gcc-aarch64-linux-gnu libc6-dev:arm64 libseccomp-dev:arm64
    qemu-user)
# Debian 13's own compiler is older than the project asks for.
newer=(cargo rustc libstd-rust-dev:arm64)

if [ "$(cat "$tree/ready" 2>/dev/null)" = "$version" ]; then
    echo "$tree"
    exit
fi
[ "$(id -u)" = 0 ] || { echo "the tree for arm64 is made by root" >&2; exit 1; }
mkdir -p "$cache"
new=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
log=$cache/tree.log
step() { # a command whose words are shown when it fails
    "$@" >> "$log" 2>&1 < /dev/null || { tail -n 20 "$log" >&2; echo "failed: $* (see $log)" >&2; exit 1; }
}
inside() { step env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive chroot "$new" "$@"; }
: > "$log"
echo "making $tree" >&2
step debootstrap --variant=minbase trixie "$new" "$mirror"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" trixie "$keyring" "$mirror" trixie-updates \
    "$keyring" "$mirror" trixie-backports > "$new/etc/apt/sources.list"
# No package's script may start anything, and nothing needs to be safe against a power cut.
printf '#!/bin/sh\nexit 101\n' > "$new/usr/sbin/policy-rc.d"
chmod 755 "$new/usr/sbin/policy-rc.d"
echo force-unsafe-io > "$new/etc/dpkg/dpkg.cfg.d/fast"
printf 'path-exclude=/usr/share/%s/*\n' doc man locale info > "$new/etc/dpkg/dpkg.cfg.d/small"
cp /etc/resolv.conf "$new/etc/resolv.conf"
inside dpkg --add-architecture arm64
inside apt-get update
inside apt-get install -y --no-install-recommends "${packages[@]}"
inside apt-get install -y --no-install-recommends -t trixie-backports "${newer[@]}"
inside apt-get clean
mkdir -p "$new/source" "$new/cargo/registry"
echo "$version" > "$new/ready"
chmod 755 "$new"
rm -rf "$tree"
mv "$new" "$tree"
trap - EXIT
echo "$tree"
