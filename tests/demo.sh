#!/usr/bin/env bash
# The main job, for real, on throwaway folders: a registry, an image, a pod, a page fetched from it, its log, a command
# in it, a clean stop. Leaves nothing behind, also when interrupted.
#   tests/demo.sh BIN_DIR        as root
set -euo pipefail
bin=$(realpath "${1:?usage: demo.sh BIN_DIR}")
. "$(dirname "$(realpath "$0")")/demo-node.sh"

say "1. A registry on loopback, with an image made from busybox"
start_registry

say "2. The daemon, in $dir"
start_daemon

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
page "$ip"

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
stop_daemon
echo "the pod, its network and its processes are gone; the folders go now"
