#!/usr/bin/env bash
# The main job on a node as users have it, which a build machine need not be: Debian's own kernel and cgroup v2 alone,
# in a virtual machine. Needs no root and no KVM; leaves nothing behind but the cached kernel.
#   tests/vm/run.sh BIN_DIR [CHECK...]     CHECK: names of files in tests/vm/checks, without .sh; all when none is named
# CRICTL names a crictl for the checks that need more than our own command line says (else: the one in PATH).
# COFFERDAM_VM_CACHE is where the kernel is kept, COFFERDAM_VM_SECONDS how long the machine may run.
set -euo pipefail
bin=$(realpath "${1:?usage: run.sh BIN_DIR [CHECK...]}")
shift
here=$(dirname "$(realpath "$0")")
cache=${COFFERDAM_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-vm}
seconds=${COFFERDAM_VM_SECONDS:-600}
crictl=${CRICTL:-$(command -v crictl || true)}
# What a node's kernel loads by itself when it is asked for; the rest of the package stays out.
modules="kernel/net kernel/lib kernel/crypto kernel/arch kernel/fs/overlayfs kernel/drivers/net/veth.ko"

for tool in qemu-system-x86_64 depmod cpio busybox nft; do
    PATH=$PATH:/usr/sbin:/sbin command -v $tool >/dev/null || { echo "$tool is missing: make setup-vm" >&2; exit 1; }
done
export PATH=$PATH:/usr/sbin:/sbin

dir=$(mktemp -d /tmp/cf-vm.XXXXXX)
machine=
clean_up() {
    [ -n "$machine" ] && kill "$machine" 2>/dev/null || true
    rm -rf --one-file-system "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Debian's kernel, unpacked and not installed: this machine need not be able to boot it.
fetch_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    [ -n "$package" ] || { echo "apt knows no linux-image-cloud-amd64" >&2; exit 1; }
    release=${package#linux-image-}
    [ -e "$cache/$release/ready" ] && return
    echo "fetching $package"
    mkdir -p "$cache/$release"
    (cd "$dir" && apt-get download -q "$package" >/dev/null 2>&1)
    dpkg -x "$dir/$package"_*.deb "$cache/$release"
    # Debian runs it when the package is installed.
    depmod -b "$cache/$release" "$release"
    touch "$cache/$release/ready"
}

# The compiler of AppArmor's policy and what policy includes, unpacked like the kernel.
fetch_apparmor() {
    [ -e "$cache/apparmor/ready" ] && return
    echo "fetching apparmor"
    mkdir -p "$cache/apparmor"
    (cd "$dir" && apt-get download -q apparmor >/dev/null 2>&1)
    dpkg -x "$dir"/apparmor_*.deb "$cache/apparmor"
    touch "$cache/apparmor/ready"
}

# A program with the libraries that it is linked to, at the same places.
add_program() { # FILE TARGET
    install -D "$1" "$root$2"
    local library
    # A static program has none.
    for library in $(ldd "$1" 2>/dev/null | grep -oE '/[^ ]+' || true); do
        [ -e "$root$library" ] || install -D "$library" "$root$library"
    done
}

build_root() {
    root=$dir/root
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,root,usr/local/bin,var/lib,checks}
    install "$(command -v busybox)" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    ln -s ../bin/busybox "$root/sbin/modprobe"
    local program
    for program in cofferdam containerd-shim-cofferdam-v1 cofferdam-bridge; do
        add_program "$bin/$program" "/usr/local/bin/$program"
    done
    add_program "$(command -v nft)" /usr/sbin/nft
    add_program "$cache/apparmor/sbin/apparmor_parser" /sbin/apparmor_parser
    cp -r "$cache/apparmor/etc/apparmor.d" "$root/etc/"
    [ -z "$crictl" ] || add_program "$crictl" /usr/local/bin/crictl
    "$bin/cofferdam-fixtures" archive "$root/demo.tar" >/dev/null
    echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
    install -m 755 "$here/init.sh" "$root/init"
    install -m 644 "$here/lib.sh" "$root/lib.sh"
    local check
    if [ $# = 0 ]; then cp "$here"/checks/*.sh "$root/checks/"; fi
    for check in "$@"; do cp "$here/checks/$check.sh" "$root/checks/"; done
    local from=$cache/$release/lib/modules/$release to=$root/lib/modules/$release
    mkdir -p "$to"
    cp "$from"/modules.{builtin,builtin.modinfo,order} "$to/"
    (cd "$from" && cp --parents -r $modules "$to/")
    depmod -b "$root" "$release"
    (cd "$root" && find . | cpio -o -H newc --quiet) > "$dir/initramfs"
}

boot() {
    # Without the host's frequency the guest measures its own, which fails at random on a busy host.
    local mhz khz
    mhz=$(sed -n 's/^cpu MHz.*: \([0-9]*\).*/\1/p' /proc/cpuinfo | head -1)
    khz=$(( ${mhz:-2000} * 1000 ))
    qemu-system-x86_64 -M q35 -accel tcg -cpu max -smp 2 -m 2048 -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$cache/$release/boot/vmlinuz-$release" -initrd "$dir/initramfs" -serial "file:$dir/console" \
        -append "console=ttyS0 quiet panic=-1 rdinit=/init apparmor=1 security=apparmor tsc_early_khz=$khz" < /dev/null &
    machine=$!
    tail -n +1 -F --pid=$machine "$dir/console" 2>/dev/null &
    local waited=0
    while kill -0 "$machine" 2>/dev/null; do
        [ $waited -lt "$seconds" ] || { echo "the machine did not end within $seconds s" >&2; kill "$machine"; break; }
        sleep 1
        waited=$((waited + 1))
    done
    wait "$machine" || true
    machine=
    wait
}

fetch_kernel
fetch_apparmor
build_root "$@"
boot
# The console has carriage returns, and a machine that stopped half way has no last line.
passed=$(grep -c '^PASS ' "$dir/console" || true)
failed=$(grep -c '^FAIL ' "$dir/console" || true)
echo "$passed passed, $failed failed, Linux $release, cgroup v2"
grep -q '^END' "$dir/console" || { echo "the checks did not come to their end" >&2; exit 1; }
[ "$failed" = 0 ]
