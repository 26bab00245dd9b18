#!/bin/busybox sh
# The first process of the virtual machine: moves to a root filesystem that containers can pivot away from, then makes
# the machine a node with cgroup v2, or lets systemd make it one, and runs the checks.
if [ ! -e /on-disk ]; then
    # A container cannot pivot away from the initial root filesystem, so the machine moves to another first.
    export PATH=/bin
    /bin/busybox --install -s /bin
    mkdir /new
    mount -t tmpfs -o size=85%,mode=755 root /new
    for entry in /*; do
        case $entry in /new|/proc|/sys|/dev) ;; *) cp -a "$entry" /new/ ;; esac
    done
    mkdir -p /new/proc /new/sys /new/dev
    touch /new/on-disk
    # Frees what was copied.
    exec /new/bin/busybox switch_root /new /init
fi
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t securityfs security /sys/kernel/security 2>/dev/null
if [ -e /selinux.policy ]; then
    mount -t selinuxfs selinux /sys/fs/selinux
    # The kernel takes a policy in one write.
    dd if=/selinux.policy of=/sys/fs/selinux/load bs=1M 2>/dev/null || echo "FAIL the kernel takes the policy" > /dev/ttyS0
fi
if [ -e /systemd-mode ]; then
    # It mounts the rest itself. Its own unit, checks.service, runs node.sh.
    exec /lib/systemd/systemd --system --log-target=console --log-level=warning --show-status=0
fi
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
. /node.sh
