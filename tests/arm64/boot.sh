#!/usr/bin/env bash
# A pod on this x86_64 node whose machine is an arm64 one: the daemon, the shim and the driver are this node's, the kernel,
# the agent and the container code in the guest are arm64's, and QEMU executes them. Leaves nothing behind.
#   tests/arm64/boot.sh BIN_DIR        as root; needs guest.sh and qemu-system-arm
set -euo pipefail
bin=$(realpath "${1:?usage: boot.sh BIN_DIR}")
here=$(dirname "$(realpath "$0")")
guest=$(realpath "$here/../../target/arm64/guest")
[ "$(id -u)" = 0 ] || { echo "pods make namespaces and a bridge: run it as root" >&2; exit 1; }

dir=$(mktemp -d /tmp/cf-arm64.XXXXXX)
bridge=cfarm$((RANDOM % 1000))
subnet=10.$((128 + RANDOM % 100)).$((RANDOM % 250)).0/24
image=docker.io/library/arm64:latest
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
daemon=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
cofferdam() { "$bin/cofferdam" --socket "$dir/cofferdam.sock" "$@"; }
fail() { echo "FAIL $*" >&2; exit 1; }
ended() { # waits until process $1, ours, has ended
    for _ in $(seq 300); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$1" 2>/dev/null || true
}
clean_up() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    if [ -n "$daemon" ]; then
        for pod in "$dir"/state/sandboxes/*/; do
            [ -d "$pod" ] && cofferdam rm -f "$(basename "$pod")" >/dev/null 2>&1 || true
        done
        kill -TERM "$daemon" 2>/dev/null || true
        ended "$daemon"
    fi
    echo "$forwarding" > /proc/sys/net/ipv4/ip_forward
    [ "$code" = 0 ] || tail -n 20 "$dir/daemon.log" 2>/dev/null || true
    rm -rf --one-file-system "$dir"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "1. A node on $(uname -m), in $dir"
mkdir -p "$dir/certs.d" "$dir/net.d" "$dir/volume"
cat > "$dir/config.toml" <<T
root = "$dir/root"
state = "$dir/state"
socket = "$dir/cofferdam.sock"
[image]
registry_config = "$dir/certs.d"
[network]
conf_dir = "$dir/net.d"
bridge = "$bridge"
subnets = ["$subnet"]
[metrics]
address = ""
[nri]
socket = ""
[runtimes.vm]
type = "io.containerd.cofferdam.v1"
isolation = "vm"
[runtimes.vm.vm]
kernel = "$guest/kernel"
image = "$guest/initramfs"
memory = 256
emulation = true
# Just below what the daemon waits for the shim, so that a guest that does not come up is quoted.
boot_seconds = 55
T
setsid "$bin/cofferdam" serve --config "$dir/config.toml" > "$dir/daemon.log" 2>&1 < /dev/null &
daemon=$!
for _ in $(seq 300); do [ -S "$dir/cofferdam.sock" ] && cofferdam info >/dev/null 2>&1 && break; sleep 0.1; done
cofferdam import "$guest/busybox.tar"

say "2. A pod in a machine for arm64"
echo "a file of the node's" > "$dir/volume/key"
begin=$(date +%s.%N)
mapfile -t ids < <(cofferdam run -d --runtime vm --name arm -v "$dir/volume:/data:ro" "$image" -- \
    sh -c 'uname -srm; cat /data/key; exec httpd -f -p 80 -h /data')
container=${ids[1]:?the pod did not start}
printf 'it runs after %.1f s\n' "$(echo "$(date +%s.%N) - $begin" | bc 2>/dev/null || echo 0)"
pgrep -fa '^/usr/bin/qemu-system-aarch64 ' | grep -F -- "-kernel $guest/kernel" | cut -c1-90

say "3. Its log"
for _ in $(seq 300); do [ "$(cofferdam logs "$container" | wc -l)" = 2 ] && break; sleep 0.1; done
cofferdam logs "$container" | tee "$dir/log"
grep -q 'aarch64$' "$dir/log" || fail "the container is not on arm64"
grep -q "a file of the node's" "$dir/log" || fail "the volume is not seen"

say "4. Commands in it"
cofferdam exec "$container" sh -c 'id; ip -4 -o addr show eth0; grep -E "^(Seccomp|NoNewPrivs|CapEff)" /proc/self/status; ps'
code=0
cofferdam exec "$container" sh -c 'echo x > /data/key' || code=$?
[ "$code" != 0 ] || fail "a volume that is read-only was written"
address=$(cofferdam inspect arm | grep -oE '"ip": *"[0-9.]+"' | head -1 | grep -oE '[0-9.]+')
for _ in $(seq 20); do busybox wget -T 5 -q -O "$dir/page" "http://$address/key" 2>/dev/null && break; sleep 1; done
echo "over the network: $(cat "$dir/page")"
cmp -s "$dir/page" "$dir/volume/key" || fail "the pod does not answer at $address"

say "5. The end"
cofferdam stop -t 1 arm
cofferdam rm arm
kill -TERM "$daemon"
ended "$daemon"
daemon=
left=$( (grep -F "$dir" /proc/self/mountinfo; ls /sys/class/net | grep -x "$bridge"; pgrep -fa "$dir/state") 2>/dev/null || true)
[ -z "$left" ] || fail "left behind: $left"
echo "the pod, its machine and its network are gone"
