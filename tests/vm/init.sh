#!/bin/busybox sh
# The first process of the virtual machine: makes it a node with cgroup v2, runs the checks, powers off.
if [ ! -e /on-disk ]; then
    # A container cannot pivot away from the initial root filesystem, so the machine moves to another first.
    export PATH=/bin
    /bin/busybox --install -s /bin
    mkdir /new
    mount -t tmpfs -o size=1500m,mode=755 root /new
    for entry in /*; do
        case $entry in /new|/proc|/sys|/dev) ;; *) cp -a "$entry" /new/ ;; esac
    done
    mkdir -p /new/proc /new/sys /new/dev
    touch /new/on-disk
    # Frees what was copied.
    exec /new/bin/busybox switch_root /new /init
fi
export PATH=/usr/local/bin:/usr/sbin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
exec < /dev/null > /dev/ttyS0 2>&1
hostname node
ip link set lo up
# An address of the node that is not of the loopback network.
ip addr add 192.0.2.1/32 dev lo

printf 'runtime-endpoint: unix:///run/cofferdam/cofferdam.sock\nimage-endpoint: unix:///run/cofferdam/cofferdam.sock\n' > /etc/crictl.yaml

. /lib.sh
echo "node: Linux $(uname -r), controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"
start_daemon
check "an archive is imported" cofferdam import /demo.tar
for file in /checks/*.sh; do
    echo "-- $(basename "$file" .sh)"
    . "$file"
done
finish
echo END
sync
poweroff -f
