#!/usr/bin/env bash
# Measures cofferdam with cri-bench, next to containerd where one is installed. Both on throwaway folders.
#   tests/bench.sh BIN_DIR [cri-bench arguments]        as root
#   CONTAINERD=path RUNC=path RUNC_SHIM=path            other binaries than those in PATH
set -euo pipefail
bin=$(realpath "${1:?usage: bench.sh BIN_DIR}")
shift
[ "$(id -u)" = 0 ] || { echo "the benchmark makes pods: run it as root" >&2; exit 1; }
dir=$(mktemp -d /tmp/cf-bench.XXXXXX)
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
pids=()
clean_up() {
    local code=$?
    trap - EXIT
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
    echo "$forwarding" > /proc/sys/net/ipv4/ip_forward
    ip link del cfpeer0 2>/dev/null || true
    [ "$code" = 0 ] || tail -n 5 "$dir"/*.log 2>/dev/null || true
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
mkdir -p "$dir/certs.d/docker.io" "$dir/net.d" "$dir/peer.d"
printf 'server = "http://127.0.0.1:%s"\n[host."http://127.0.0.1:%s"]\ncapabilities = ["pull", "resolve"]\n' \
    "$port" "$port" > "$dir/certs.d/docker.io/hosts.toml"
cat > "$dir/config.toml" <<T
root = "$dir/root"
state = "$dir/state"
socket = "$dir/cofferdam.sock"
[image]
registry_config = "$dir/certs.d"
[network]
conf_dir = "$dir/net.d"
bridge = "cfbench0"
subnets = ["10.97.0.0/16"]
T
"$bin/cofferdam" serve --config "$dir/config.toml" > "$dir/cofferdam.log" 2>&1 < /dev/null &
pids+=($!)

against=()
containerd=${CONTAINERD:-$(command -v containerd || true)}
if [ -n "$containerd" ]; then
    cat > "$dir/peer.d/10-peer.conflist" <<J
{"cniVersion": "1.0.0", "name": "peer", "plugins": [
  {"type": "bridge", "bridge": "cfpeer0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{"subnet": "10.98.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
    major=$("$containerd" --version | grep -oE ' v?[0-9]+\.' | head -1 | tr -dc 0-9)
    if [ "${major:-1}" -ge 2 ]; then cri=io.containerd.cri.v1.runtime images=io.containerd.cri.v1.images version=3
    else cri=io.containerd.grpc.v1.cri images=io.containerd.grpc.v1.cri version=2; fi
    cat > "$dir/containerd.toml" <<T
version = $version
root = "$dir/peer-root"
state = "$dir/peer-state"
[grpc]
  address = "$dir/containerd.sock"
[ttrpc]
  address = "$dir/containerd.sock.ttrpc"
[plugins."$cri"]
  restrict_oom_score_adj = true
[plugins."$cri".cni]
  conf_dir = "$dir/peer.d"
  $([ "$version" = 3 ] && echo 'bin_dirs = ["/usr/lib/cni"]' || echo 'bin_dir = "/usr/lib/cni"')
[plugins."$images".registry]
  config_path = "$dir/certs.d"
T
    # Its sandbox image comes from our registry too: any program that stays will do.
    "$bin/cofferdam-fixtures" push --image demo "127.0.0.1:$port/library/pause:latest" >/dev/null
    if [ "$version" = 3 ]; then
        printf '[plugins."%s".pinned_images]\n  sandbox = "docker.io/library/pause:latest"\n' "$images" >> "$dir/containerd.toml"
    else
        sed -i "s|  restrict_oom_score_adj|  sandbox_image = \"docker.io/library/pause:latest\"\n  restrict_oom_score_adj|" "$dir/containerd.toml"
    fi
    PATH="$(dirname "$containerd"):$PATH" "$containerd" --config "$dir/containerd.toml" > "$dir/containerd.log" 2>&1 < /dev/null &
    pids+=($!)
    against=(--against "$dir/containerd.sock")
    echo "against $("$containerd" --version)"
else
    echo "no containerd in PATH: cofferdam alone"
fi
for socket in cofferdam.sock ${against:+containerd.sock}; do
    for _ in $(seq 150); do [ -S "$dir/$socket" ] && break; sleep 0.1; done
done
sleep 1
"$bin/cri-bench" --endpoint "$dir/cofferdam.sock" "${against[@]}" --image docker.io/library/base:latest "$@"
