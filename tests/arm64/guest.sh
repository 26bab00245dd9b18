#!/usr/bin/env bash
# Makes what an arm64 guest boots in target/arm64/guest: a kernel of Debian 13, the initramfs, and an image of busybox in
# the form of `docker save`. The initramfs is made by the arm64 program itself, which qemu-user executes.
# Needs `build.sh guest`.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
source=$(realpath "$here/../..")
tree=$("$here/tree.sh")
bin=target/arm64/aarch64-unknown-linux-gnu/debug
guest=$source/target/arm64/guest
packages=$tree/packages

# Unpacked in the tree and not installed, as nothing there boots; in the layout that vm/tests/boot.rs reads.
release=$(cat "$packages/release" 2>/dev/null || true)
if [ -z "$release" ]; then
    echo "fetching a kernel and busybox for arm64" >&2
    rm -rf "$packages"
    mkdir -p "$packages"
    kernel=$(chroot "$tree" apt-cache depends linux-image-cloud-arm64:arm64 |
        sed -n 's/.*Depends: \(linux-image-[0-9][^:]*\).*/\1/p' | head -1)
    [ -n "$kernel" ] || { echo "apt knows no linux-image-cloud-arm64" >&2; exit 1; }
    release=${kernel#linux-image-}
    chroot "$tree" sh -c "cd /packages && apt-get download -q $kernel:arm64 busybox-static:arm64" >/dev/null 2>&1
    for package in "$packages"/*.deb; do dpkg -x "$package" "$packages/$release"; done
    rm "$packages"/*.deb
    [ -e "$packages/$release/lib" ] || ln -s usr/lib "$packages/$release/lib"
    touch "$packages/$release/ready"
    echo "$release" > "$packages/release"
fi
kernel=/packages/$release

"$here/enter.sh" mkdir -p "$guest"
"$here/enter.sh" qemu-aarch64 $bin/containerd-shim-cofferdam-v1 build-vm-image \
    "$kernel/boot/vmlinuz-$release" "$kernel/lib/modules/$release" "$guest"

dir=$(mktemp -d /tmp/cf-arm64-image.XXXXXX)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/root"/{bin,etc,tmp,proc,sys,dev}
cp "$(find "$tree$kernel" -path '*bin/busybox' -type f)" "$dir/root/bin/busybox"
for applet in sh cat ls uname sleep echo id ip ps grep httpd; do ln -s busybox "$dir/root/bin/$applet"; done
tar -C "$dir/root" --owner=0 --group=0 -cf "$dir/layer.tar" .
# A node pulls images for its own processor, so this one says it is for that.
case $(uname -m) in aarch64) own=arm64 ;; *) own=amd64 ;; esac
cat > "$dir/config.json" <<J
{"architecture":"$own","os":"linux","config":{"Cmd":["/bin/sh"],"Env":["PATH=/bin"]},
 "rootfs":{"type":"layers","diff_ids":["sha256:$(sha256sum "$dir/layer.tar" | cut -d' ' -f1)"]}}
J
echo '[{"Config":"config.json","RepoTags":["docker.io/library/arm64:latest"],"Layers":["layer.tar"]}]' \
    > "$dir/manifest.json"
tar -C "$dir" -cf "$guest/busybox.tar" manifest.json config.json layer.tar
ls -l "$guest"
