#!/usr/bin/env bash
# The main job on a node as users have it, which a build machine need not be: Debian's own kernel and cgroup v2 alone,
# in a virtual machine. Needs no root and no KVM; leaves nothing behind but the cached kernel.
#   tests/vm/run.sh [OPTION...] BIN_DIR [CHECK...]
#     CHECK         names of files in tests/vm/checks, without .sh; all when none is named
#     --systemd     systemd is the first process and keeps the cgroups; the checks are those of tests/vm/checks-systemd
#     --hybrid      cgroup v1 with the unified hierarchy beside it, as systemd sets it up; only with --systemd
#     --legacy      cgroup v1 alone; only with --systemd
#     --selinux     SELinux with a small policy of our own instead of AppArmor; the checks are those of
#                   tests/vm/checks-selinux
#     --critest     critest from PATH (or CRITEST) instead of checks, with images from a registry that this machine
#                   reaches (COFFERDAM_VM_REGISTRY, else 127.0.0.1:5000); says "skipped" where there is none of either
#     --focus TEXT  only the specs of critest that match; --skip TEXT leaves specs out
# CRICTL names a crictl for the checks that need more than our own command line says (else: the one in PATH).
# COFFERDAM_VM_CACHE is where the kernel is kept, COFFERDAM_VM_SECONDS how long the machine may run, COFFERDAM_VM_APPEND
# what the kernel is told besides.
set -euo pipefail
init=ours layout=v2 lsm=apparmor critest='' focus='' skip=''
while [ $# -gt 0 ]; do
    case $1 in
        --systemd) init=systemd ;;
        --hybrid|--legacy) layout=${1#--} ;;
        --selinux) lsm=selinux ;;
        --critest) critest=yes ;;
        --focus) focus=${2:?}; shift ;;
        --skip) skip=${2:?}; shift ;;
        -*) echo "unknown option $1" >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done
bin=$(realpath "${1:?usage: run.sh [OPTION...] BIN_DIR [CHECK...]}")
shift
here=$(dirname "$(realpath "$0")")
cache=${COFFERDAM_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-vm}
seconds=${COFFERDAM_VM_SECONDS:-600}
crictl=${CRICTL:-$(command -v crictl || true)}
registry=${COFFERDAM_VM_REGISTRY:-127.0.0.1:5000}
if [ -n "$critest" ]; then
    critest=${CRITEST:-$(command -v critest || true)}
    [ -n "$critest" ] || { echo "skipped: no critest in PATH"; exit 0; }
    (exec 3<>"/dev/tcp/${registry%:*}/${registry#*:}") 2>/dev/null ||
        { echo "skipped: no registry with the images of critest at $registry"; exit 0; }
fi
[ $lsm = apparmor ] || [ $init$critest = ours ] || { echo "--selinux goes with neither --systemd nor --critest" >&2; exit 2; }
[ $layout = v2 ] || [ $init = systemd ] || { echo "--$layout needs --systemd" >&2; exit 2; }

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

. "$here/root.sh"

boot() {
    # Without the host's frequency the guest measures its own, which fails at random on a busy host.
    local mhz khz append
    mhz=$(sed -n 's/^cpu MHz.*: \([0-9]*\).*/\1/p' /proc/cpuinfo | head -1)
    khz=$(( ${mhz:-2000} * 1000 ))
    append="console=ttyS0 quiet panic=-1 rdinit=/init tsc_early_khz=$khz"
    case $lsm in
        selinux) append="$append security=selinux selinux=1 enforcing=1" ;;
        *) append="$append apparmor=1 security=apparmor" ;;
    esac
    case $layout in
        hybrid) append="$append systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0" ;;
        legacy) append="$append systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1" ;;
    esac
    # The guest reaches this machine's loopback at 10.0.2.2, and nothing else needs to be reached.
    qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m "${COFFERDAM_VM_MEMORY:-2048}" \
        -nodefaults -no-user-config -display none -no-reboot -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= \
        -kernel "$cache/$release/boot/vmlinuz-$release" -initrd "$dir/initramfs" -serial "file:$dir/console" \
        -append "$append ${COFFERDAM_VM_APPEND:-}" < /dev/null &
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
[ $lsm != selinux ] || fetch_selinux
build_root "$@"
boot
# The console has carriage returns, and a machine that stopped half way has no last line.
passed=$(grep -c '^PASS ' "$dir/console" || true)
failed=$(grep -c '^FAIL ' "$dir/console" || true)
skipped=$(grep -c '^SKIP ' "$dir/console" || true)
echo "$passed passed, $failed failed, $skipped skipped, Linux $release, cgroup $layout, $lsm${critest:+, critest}"
grep -q '^END' "$dir/console" || { echo "the checks did not come to their end" >&2; exit 1; }
[ "$failed" = 0 ]
