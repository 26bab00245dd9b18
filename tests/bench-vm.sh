#!/usr/bin/env bash
# Measures pods in virtual machines: boot, memory, files, network; next to a pod of the node's own kernel. Throwaway folders.
#   tests/bench-vm.sh BIN_DIR [SAMPLES]        as root
#   MEMORY=192 SIZE=64                         MiB of a machine; MiB that are written, read and sent
set -euo pipefail
bin=$(realpath "${1:?usage: bench-vm.sh BIN_DIR [SAMPLES]}")
samples=${2:-3}
memory=${MEMORY:-192} size=${SIZE:-64}
[ "$(id -u)" = 0 ] || { echo "the benchmark makes pods: run it as root" >&2; exit 1; }
cache=${COFFERDAM_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-vm}
kernel=$(for one in "$cache"/*/; do [ -e "$one/ready" ] && [ -d "$one/boot" ] && echo "$one" && break; done || true)
[ -n "$kernel" ] || { echo "no kernel is unpacked in $cache: tests/vm/kernel.sh" >&2; exit 1; }
dir=$(mktemp -d /tmp/cf-bvm.XXXXXX)
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
pids=()
clean_up() {
    local code=$?
    trap - EXIT
    for pod in $("$bin/cofferdam" pods -q --socket "$dir/s" 2>/dev/null); do
        "$bin/cofferdam" rm -f --socket "$dir/s" "$pod" >/dev/null 2>&1 || true
    done
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
    echo "$forwarding" > /proc/sys/net/ipv4/ip_forward
    ip link del cfbvm0 2>/dev/null || true
    [ "$code" = 0 ] || tail -n 5 "$dir"/*.log "$dir"/state/sandboxes/*/shim.log 2>/dev/null || true
    rm -rf --one-file-system "$dir"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

port=$((20000 + RANDOM % 20000))
cat > "$dir/registry.yml" <<Y
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$port"}
Y
OTEL_TRACES_EXPORTER=none docker-registry serve "$dir/registry.yml" > "$dir/registry.log" 2>&1 < /dev/null &
pids+=($!)
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
"$bin/cofferdam-fixtures" push --image base "127.0.0.1:$port/library/base:latest" >/dev/null
"$bin/cofferdam" vm build-image --root "$kernel" --output "$dir/vm" >/dev/null
mkdir -p "$dir/certs.d/docker.io" "$dir/net.d" "$dir/volume"
printf 'server = "http://127.0.0.1:%s"\n[host."http://127.0.0.1:%s"]\ncapabilities = ["pull", "resolve"]\n' \
    "$port" "$port" > "$dir/certs.d/docker.io/hosts.toml"
cat > "$dir/config.toml" <<T
root = "$dir/root"
state = "$dir/state"
socket = "$dir/s"
[image]
registry_config = "$dir/certs.d"
[network]
conf_dir = "$dir/net.d"
bridge = "cfbvm0"
subnets = ["10.96.0.0/16"]
[nri]
socket = ""
[metrics]
address = ""
[shim]
task_seconds = 200
[runtimes.vm]
type = "io.containerd.cofferdam.v1"
isolation = "vm"
[runtimes.vm.vm]
kernel = "$dir/vm/kernel"
image = "$dir/vm/initramfs"
memory = $memory
emulation = true
boot_seconds = 120
T
"$bin/cofferdam" serve --config "$dir/config.toml" > "$dir/cofferdam.log" 2>&1 < /dev/null &
pids+=($!)
for _ in $(seq 150); do [ -S "$dir/s" ] && break; sleep 0.1; done
export COFFERDAM_SOCKET=$dir/s
cf() { "$bin/cofferdam" "$@"; }
cf pull docker.io/library/base:latest >/dev/null
# The first pod finds out about KVM, which is not to be counted.
cf run --runtime vm --name warm docker.io/library/base:latest -- true >/dev/null

# run NAME RUNTIME: a pod that prints a word and stays.
run() {
    cf run -d --rm=false --runtime "$2" --name "$1" -v "$dir/volume:/data" docker.io/library/base:latest -- \
        sh -c 'echo first; exec sleep 100000' > "$dir/$1.ids"
    pod=$(sed -n 1p "$dir/$1.ids") container=$(sed -n 2p "$dir/$1.ids")
}
in_pod() { cf exec "$container" -- sh -c "$1"; }
milliseconds() { echo $(( ($2 - $1) / 1000000 )); }
number() { grep -o "\"$1\":[0-9]*" "$2" | cut -d: -f2; }
# In KiB: resident, and its share of what is shared.
memory_of() {
    awk -v what="$2" '/^Rss:/ {rss = $2} /^Pss:/ {pss = $2} END {printf "  %-26s %7d KiB resident, %7d KiB its share\n", what, rss, pss}' \
        "/proc/$1/smaps_rollup"
}
# MiB a second of a command in the container, by the container's own clock.
rate() {
    local times
    times=$(in_pod "set -- \$(cat /proc/uptime); begin=\$1; { $2; } >/dev/null 2>&1; set -- \$(cat /proc/uptime); echo \$begin \$1")
    echo "$times" | awk -v what="$1" -v m="$size" \
        '{s = $2 - $1; if (s < 0.01) s = 0.01; printf "  %-44s %8.1f MiB/s (%.2f s)\n", what, m / s, s}'
}

echo "machines of $memory MiB, $(nproc) processors on the node, load $(cut -d' ' -f1 /proc/loadavg)"
echo "boot, in ms after the start of QEMU:"
for n in $(seq "$samples"); do
    begin=$(date +%s%N)
    run "boot$n" vm
    end=$(date +%s%N)
    boot=$dir/state/sandboxes/$pod/vm/boot.json
    for _ in $(seq 100); do line=$(cf logs -t "$container" | head -1); [ -n "$line" ] && break; sleep 0.1; done
    started=$(number monitor_started "$boot")
    first=$(date -d "${line%% *}" +%s%N)
    echo "  agent answers $(milliseconds "$started" "$(number agent_answered "$boot")")," \
         "guest is set up $(milliseconds "$started" "$(number set_up "$boot")")," \
         "first output of a container $(milliseconds "$started" "$first");" \
         "the whole command took $(milliseconds "$begin" "$end")"
    [ "$n" = "$samples" ] || cf rm -f "$pod" >/dev/null
done

echo "memory with one idle container:"
for process in /proc/[0-9]*; do
    log=$(readlink "$process/fd/2" 2>/dev/null || true)
    case "$log" in
        *"$pod/vm/monitor.log") memory_of "${process#/proc/}" QEMU ;;
        *"$pod/vm/virtiofsd.log") memory_of "${process#/proc/}" virtiofsd ;;
    esac
done
memory_of "$(cat "$dir/state/sandboxes/$pod/shim.pid")" "shim"
echo "  in the guest: $(in_pod "awk '/MemTotal|MemFree|MemAvailable/ {printf \"%s %d MiB  \", \$1, \$2 / 1024}' /proc/meminfo") of $memory MiB"

peer() { # PORT direction: the node's end of a connection
    if [ "$2" = take ]; then busybox nc -l -p "$1" >/dev/null; else head -c "${size}M" /dev/zero | busybox nc -l -p "$1"; fi
}
measure() {
    head -c "${size}M" /dev/zero > "$dir/volume/from-node"
    rate "writes a volume, and syncs it" "dd if=/dev/zero of=/data/$1 bs=1M count=$size conv=fsync"
    rate "reads a volume that the node has in memory" "dd if=/data/from-node of=/dev/null bs=1M"
    rate "reads it again" "dd if=/data/from-node of=/dev/null bs=1M"
    rate "writes its root filesystem, and syncs it" "dd if=/dev/zero of=/root-file bs=1M count=$size conv=fsync"
    rate "200 small files made and removed" \
        "mkdir /data/many; i=0; while [ \$i -lt 200 ]; do echo x > /data/many/\$i; i=\$((i+1)); done; rm -r /data/many"
    peer $((port + 1)) take & sleep 0.5
    rate "sends to the node over TCP" "head -c ${size}M /dev/zero | nc 10.96.0.1 $((port + 1))"; wait $!
    port=$((port + 2))
    peer "$port" give & sleep 0.5
    rate "receives from the node over TCP" "nc 10.96.0.1 $port < /dev/null | wc -c"; wait $!
    begin=$(date +%s%N); in_pod true; end=$(date +%s%N)
    echo "  an exec of nothing takes $(milliseconds "$begin" "$end") ms"
    rm -f "$dir/volume/$1"
}
echo "a container in the machine, $size MiB each:"
measure vm
cf rm -f "$pod" >/dev/null
run node cofferdam
echo "the same on the node's own kernel:"
measure node
cf rm -f "$pod" >/dev/null
