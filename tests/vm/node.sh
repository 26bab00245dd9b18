#!/bin/busybox sh
# What the virtual machine is for: the node's network, the daemon, the checks, and the end.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec < /dev/null > /dev/ttyS0 2>&1
hostname node
ip link set lo up
# An address of the node that is not of the loopback network.
ip addr add 192.0.2.1/32 dev lo
if [ -e /checks/critest.sh ]; then
    modprobe virtio_pci
    modprobe virtio_net
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
fi

printf 'runtime-endpoint: unix:///run/cofferdam/cofferdam.sock\nimage-endpoint: unix:///run/cofferdam/cofferdam.sock\n' > /etc/crictl.yaml

. /lib.sh
echo "node: Linux $(uname -r), controllers: $(cat $cgroups/cgroup.controllers 2>/dev/null || cut -f1 /proc/cgroups | xargs)"
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
