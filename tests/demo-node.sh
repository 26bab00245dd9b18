# A throwaway node for the demos, which source this file: folders, a registry with an image on loopback, a daemon. All of it
# goes when the script ends, also when it is interrupted. Needs $bin, the folder of the binaries.
[ "$(id -u)" = 0 ] || { echo "the demo makes namespaces and a bridge: run it as root" >&2; exit 1; }

dir=$(mktemp -d /tmp/cf-demo.XXXXXX)
bridge=cfdemo$((RANDOM % 1000))
subnet=10.$((128 + RANDOM % 100)).$((RANDOM % 250)).0/24
image=docker.io/library/demo:latest
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
daemon= registry= helper=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
cofferdam() { "$bin/cofferdam" --socket "$dir/cofferdam.sock" "$@"; }
ended() { # waits until process $1, ours, has ended
    for _ in $(seq 200); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$1" 2>/dev/null || true
}
clean_up() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    [ -n "$helper" ] && { kill "$helper" 2>/dev/null || true; ended "$helper"; }
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

free_port() {
    python3 - <<'P' 2>/dev/null || echo $((20000 + RANDOM % 20000))
import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])
P
}

start_registry() { # with the image, made from busybox
    local port
    port=$(free_port)
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
}

start_daemon() { # $1 goes to the end of the configuration
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
    printf '%s\n' "${1:-}" >> "$dir/config.toml"
    setsid "$bin/cofferdam" serve --config "$dir/config.toml" > "$dir/daemon.log" 2>&1 < /dev/null &
    daemon=$!
    for _ in $(seq 100); do [ -S "$dir/cofferdam.sock" ] && cofferdam info >/dev/null 2>&1 && break; sleep 0.1; done
    cofferdam info
}

page() { # asks for it until it comes
    for _ in $(seq 100); do busybox wget -q -O "$dir/page" "http://$1/" 2>/dev/null && break; sleep 0.1; done
    cat "$dir/page"
}

stop_daemon() { # and looks for what is left
    kill -TERM "$daemon"
    ended "$daemon"
    daemon=
    local left
    left=$( (grep -F "$dir" /proc/self/mountinfo; ls /sys/class/net | grep -x "$bridge"; pgrep -fa "$dir/(state|guest)") 2>/dev/null || true)
    if [ -n "$left" ]; then
        echo "left behind: $left" >&2
        exit 1
    fi
}
