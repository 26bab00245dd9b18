# The machine's root filesystem: what run.sh sources. It reads $dir, $cache, $bin, $init, $critest and the rest of its
# settings, and sets $release and $root.

# What a node's kernel loads by itself when it is asked for; the rest of the package stays out.
modules="kernel/net kernel/lib kernel/crypto kernel/arch kernel/fs/overlayfs kernel/fs/autofs kernel/drivers/virtio
    kernel/drivers/net/veth.ko kernel/drivers/net/virtio_net.ko kernel/drivers/net/net_failover.ko"

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

# The compiler of SELinux's policy, and what reads the labels of files.
fetch_selinux() {
    [ -e "$cache/selinux/ready" ] && return
    echo "fetching checkpolicy and attr"
    mkdir -p "$cache/selinux"
    (cd "$dir" && apt-get download -q checkpolicy attr >/dev/null 2>&1)
    dpkg -x "$dir"/checkpolicy_*.deb "$cache/selinux"
    dpkg -x "$dir"/attr_*.deb "$cache/selinux"
    touch "$cache/selinux/ready"
}

# For kernels with other classes than the policy has, those are allowed.
add_selinux_policy() {
    "$here/selinux/policy.sh" > "$dir/policy.conf"
    "$cache/selinux/usr/bin/checkpolicy" -M -U allow -c 33 -o "$root/selinux.policy" "$dir/policy.conf" >/dev/null
    add_program "$cache/selinux/usr/bin/getfattr" /bin/getfattr
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

# systemd as this machine has it, with the least that it needs: no journal, no bus, no logins.
add_systemd() {
    [ -x /lib/systemd/systemd ] || { echo "systemd is missing: apt-get install systemd" >&2; exit 1; }
    local program
    for program in /lib/systemd/systemd /lib/systemd/systemd-executor /lib/systemd/systemd-cgroups-agent \
        /bin/systemctl; do
        [ ! -x $program ] || add_program $program $program
    done
    touch "$root/systemd-mode"
    mkdir -p "$root/etc/systemd/system"
    echo 'ID=debian' > "$root/etc/os-release"
    echo 'uninitialized' > "$root/etc/machine-id"
    printf 'root:x:0:\ntty:x:5:\n' > "$root/etc/group"
    cp "$here"/units/*.{service,target} "$root/etc/systemd/system/"
    # The daemon's is the one that users get, but for what this small machine has not.
    sed 's#@BINDIR@#/usr/local/bin#' "$here/../../cri-server/systemd/cofferdam.service.in" \
        > "$root/etc/systemd/system/cofferdam.service"
    mkdir -p "$root/etc/systemd/system/cofferdam.service.d"
    cp "$here/units/cofferdam.conf" "$root/etc/systemd/system/cofferdam.service.d/"
}

build_root() { # CHECK...
    root=$dir/root
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,root,usr/bin,usr/local/bin,var/lib,var/log,var/cache/apparmor,checks}
    install "$(command -v busybox)" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    ln -s ../bin/busybox "$root/sbin/modprobe"
    local program
    for program in cofferdam containerd-shim-cofferdam-v1 cofferdam-bridge; do
        add_program "$bin/$program" "/usr/local/bin/$program"
    done
    add_program "$(command -v nft)" /usr/sbin/nft
    [ -z "$crictl" ] || add_program "$crictl" /usr/local/bin/crictl
    # The daemon and critest load profiles with it.
    add_program "$cache/apparmor/sbin/apparmor_parser" /sbin/apparmor_parser
    # With all that it looks for: critest takes any warning of the parser's for a failure.
    cp -r "$cache"/apparmor/etc/{apparmor,apparmor.d} "$root/etc/"
    mkdir -p "$root/usr/share"
    cp -r "$cache/apparmor/usr/share/apparmor-features" "$root/usr/share/"
    # A foreign shim, where this machine has one.
    for program in containerd-shim-runc-v2 runc; do
        [ "$init" != systemd ] || [ ! -x "/usr/bin/$program" ] || add_program "/usr/bin/$program" "/usr/bin/$program"
    done
    "$bin/cofferdam-fixtures" archive "$root/demo.tar" >/dev/null
    echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
    printf '127.0.0.1 localhost\n' > "$root/etc/hosts"
    echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
    install -m 755 "$here/init.sh" "$root/init"
    install -m 755 "$here/node.sh" "$root/node.sh"
    install -m 644 "$here/lib.sh" "$root/lib.sh"
    local checks=$here/checks check
    if [ "$lsm" = selinux ]; then
        add_selinux_policy
        checks=$here/checks-selinux
    fi
    if [ "$init" = systemd ]; then
        add_systemd
        checks=$here/checks-systemd
    fi
    if [ -n "$critest" ]; then
        add_critest
    elif [ $# = 0 ]; then
        cp "$checks"/*.sh "$root/checks/"
    fi
    for check in "$@"; do cp "$checks/$check.sh" "$root/checks/"; done
    add_modules
    (cd "$root" && find . | cpio -o -H newc --quiet) > "$dir/initramfs"
}

# The suite and where its images come from; the names of registries are those that it pulls from.
add_critest() {
    add_program "$critest" /usr/local/bin/critest
    install -m 644 "$here/critest.sh" "$root/checks/critest.sh"
    # What the suite itself calls on the node; it is root already.
    printf '#!/bin/sh\nexec "$@"\n' > "$root/usr/bin/sudo"
    chmod 755 "$root/usr/bin/sudo"
    local program
    for program in ipcmk ipcs ipcrm; do
        [ ! -x "$(command -v $program)" ] || add_program "$(command -v $program)" /usr/bin/$program
    done
    printf '%s' "$focus" > "$root/focus"
    printf '%s' "$skip" > "$root/skip"
    local name host=$registry
    case ${registry%:*} in 127.*|localhost) host=10.0.2.2:${registry#*:} ;; esac
    for name in registry.k8s.io k8s.gcr.io gcr.io docker.io public.ecr.aws; do
        mkdir -p "$root/etc/containerd/certs.d/$name"
        printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$host" "$host" \
            > "$root/etc/containerd/certs.d/$name/hosts.toml"
    done
}

add_modules() {
    local from=$cache/$release/lib/modules/$release to=$root/lib/modules/$release
    mkdir -p "$to"
    cp "$from"/modules.{builtin,builtin.modinfo,order} "$to/"
    (cd "$from" && cp --parents -r $modules "$to/")
    depmod -b "$root" "$release"
}
