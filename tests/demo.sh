#!/usr/bin/env bash
# The main job, for real, on throwaway folders: a registry, an image, a pod, a page fetched from it, its log, a command
# in it, a clean stop. Leaves nothing behind, also when interrupted.
#   tests/demo.sh BIN_DIR        as root
set -euo pipefail
bin=$(realpath "${1:?usage: demo.sh BIN_DIR}")
[ "$(id -u)" = 0 ] || { echo "the demo makes namespaces and a bridge: run it as root" >&2; exit 1; }

dir=$(mktemp -d /tmp/cf-demo.XXXXXX)
bridge=cfdemo$((RANDOM % 1000))
subnet=10.$((128 + RANDOM % 100)).$((RANDOM % 250)).0/24
image=docker.io/library/demo:latest
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
daemon= registry=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
cofferdam() { "$bin/cofferdam" --socket "$dir/cofferdam.sock" "$@"; }
ended() { # waits until process $1, ours, has ended
    for _ in $(seq 100); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
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
    [ -n "$registry" ] && { kill "$registry" 2>/dev/null || true; ended "$registry"; }
    echo "$forwarding" > /proc/sys/net/ipv4/ip_forward
    [ "$code" = 0 ] || tail -n 20 "$dir/daemon.log" 2>/dev/null || true
    rm -rf --one-file-system "$dir"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "1. A registry on loopback, with an image made from busybox"
port=$(python3 - <<'P' 2>/dev/null || echo $((20000 + RANDOM % 20000))
import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])
P
)
mkdir -p "$dir/certs.d/docker.io" "$dir/net.d"
cat > "$dir/registry.yml" <<Y
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$port"}
Y
OTEL_TRACES_EXPORTER=none setsid docker-registry serve "$dir/registry.yml" > "$dir/registry.log" 2>&1 < /dev/null &
registry=$!
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
"$bin/cofferdam-fixtures" push "127.0.0.1:$port/library/demo:latest"
cat > "$dir/certs.d/docker.io/hosts.toml" <<T
server = "http://127.0.0.1:$port"
[host."http://127.0.0.1:$port"]
capabilities = ["pull", "resolve"]
T

say "2. The daemon, in $dir"
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
T
setsid "$bin/cofferdam" serve --config "$dir/config.toml" > "$dir/daemon.log" 2>&1 < /dev/null &
daemon=$!
for _ in $(seq 100); do [ -S "$dir/cofferdam.sock" ] && cofferdam info >/dev/null 2>&1 && break; sleep 0.1; done
cofferdam info

say "3. Pull $image"
cofferdam pull "$image"
cofferdam images

say "4. A pod with its web server"
mapfile -t ids < <(cofferdam run -d --name web "$image")
container=${ids[1]:?the pod did not start}
cofferdam pods
cofferdam ps
ip=$(cofferdam inspect web | grep -oE "\"ip\": *\"[0-9.]+\"" | head -1 | grep -oE '[0-9.]+')
echo "the pod's address: $ip"

say "5. A page from it, over the bridge $bridge"
for _ in $(seq 50); do busybox wget -q -O "$dir/page" "http://$ip/" 2>/dev/null && break; sleep 0.1; done
cat "$dir/page"

say "6. Its log"
cofferdam logs "$container"

say "7. A command in it"
cofferdam exec "$container" sh -c 'echo "I am $(id -un) on $(hostname), Linux $(uname -r), and these run here:"; ps'

say "8. Another image's command in a new pod, with its exit code"
code=0
cofferdam run "$image" -- sh -c 'echo "from a pod of my own: $(ip -4 -o addr show eth0 | cut -d" " -f7)"; exit 7' || code=$?
echo "its exit code: $code"

say "9. The end"
cofferdam stop -t 1 web
cofferdam rm web
kill -TERM "$daemon"
ended "$daemon"
daemon=
left=$( (grep -F "$dir" /proc/self/mountinfo; ls /sys/class/net | grep -x "$bridge"; pgrep -fa "$dir/state") 2>/dev/null || true)
if [ -n "$left" ]; then
    echo "left behind: $left" >&2
    exit 1
fi
echo "the pod, its network and its processes are gone; the folders go now"
