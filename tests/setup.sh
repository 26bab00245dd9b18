#!/usr/bin/env bash
# Installs those of the named Debian packages that are missing; no daemon of theirs is started.
set -euo pipefail
missing=()
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "These packages are missing, and this is no Debian: ${missing[*]}" >&2
    exit 1
fi
echo "installing: ${missing[*]}"
# Package scripts must not start the services that we only want the programs of.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | ${SUDO:-} tee "$policy" >/dev/null
    ${SUDO:-} chmod 755 "$policy"
    trap '${SUDO:-} rm -f "$policy"' EXIT
fi
${SUDO:-} apt-get update -qq
${SUDO:-} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
