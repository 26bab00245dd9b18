#!/usr/bin/env bash
# Unpacks Debian's kernel for virtual machines into the cache, when it is not there, and prints its folder.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
cache=${COFFERDAM_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-vm}
export PATH=$PATH:/usr/sbin:/sbin
dir=$(mktemp -d /tmp/cf-kernel.XXXXXX)
trap 'rm -rf "$dir"' EXIT
. "$here/root.sh"
fetch_kernel
echo "$cache/$release"
