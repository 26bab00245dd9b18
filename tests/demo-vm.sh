#!/usr/bin/env bash
# A pod with a kernel of its own, for real, on throwaway folders: the guest's image, a pod in a virtual machine, its kernel
# next to the node's, a page from it, its log, a command in it, a clean stop. Leaves nothing behind, also when interrupted.
#   tests/demo-vm.sh BIN_DIR        as root; tests/vm/kernel.sh fetches the guest's kernel where it is not there
set -euo pipefail
bin=$(realpath "${1:?usage: demo-vm.sh BIN_DIR}")
here=$(dirname "$(realpath "$0")")
. "$here/demo-node.sh"

say "1. The guest's image, of Debian's kernel package and the programs of this build"
kernel=$("$here/vm/kernel.sh")
cofferdam vm build-image --root "$kernel" --output "$dir/guest"

say "2. A registry on loopback, with an image made from busybox"
start_registry

say "3. The daemon, in $dir; without KVM machines run under emulation, many times slower"
start_daemon "
[runtimes.cofferdam]
type = \"io.containerd.cofferdam.v1\"
[runtimes.vm]
type = \"io.containerd.cofferdam.v1\"
isolation = \"vm\"
[runtimes.vm.vm]
kernel = \"$dir/guest/kernel\"
image = \"$dir/guest/initramfs\"
memory = 192
emulation = true
boot_seconds = 50"
cofferdam pull "$image"

say "4. A pod of the handler vm, with the image's web server"
mapfile -t ids < <(cofferdam run -d --runtime vm --name web "$image")
container=${ids[1]:?the pod did not start}
cofferdam pods
cofferdam ps

say "5. Its kernel is not the node's"
inside=$(cofferdam exec "$container" uname -r)
echo "the node runs Linux $(uname -r), the pod Linux $inside"
[ "$inside" != "$(uname -r)" ] || { echo "that is the same kernel" >&2; exit 1; }

say "6. A page from it: over the bridge $bridge, and by a forwarded port"
page "$(cofferdam inspect web | grep -oE "\"ip\": *\"[0-9.]+\"" | head -1 | grep -oE '[0-9.]+')"
port=$(free_port)
"$bin/cofferdam" --socket "$dir/cofferdam.sock" port-forward web "$port:80" > "$dir/forward.log" 2>&1 < /dev/null &
helper=$!
rm "$dir/page"
page "127.0.0.1:$port"
kill "$helper"
ended "$helper"
helper=

say "7. Its log"
cofferdam logs "$container"

say "8. A command in it"
cofferdam exec "$container" sh -c 'echo "I am $(id -un) on $(hostname), with this memory, and these run here:"; free -m; ps'

say "9. The end"
cofferdam stop -t 1 web
cofferdam rm web
stop_daemon
echo "the pod, its machine, its network and its processes are gone; the folders go now"
