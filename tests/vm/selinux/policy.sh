#!/usr/bin/env bash
# Writes the policy of the machine's SELinux for checkpolicy(8): just enough to tell the types of containers and their
# categories apart. What is no process and no file is not part of it, and allowed.
cat <<'POLICY'
class process
class process2
class file
class dir
POLICY
# In the order of the kernel's numbers.
sids="kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet icmp_socket
    tcp_socket sysctl_modprobe sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix sysctl_vm sysctl_dev kmod
    policy scmp_packet devnull"
for sid in $sids; do echo "sid $sid"; done
cat <<'POLICY'
class process { transition dyntransition setexec setcurrent siginh noatsecure rlimitinh fork sigchld signal }
class process2 { nnp_transition nosuid_transition }
class file { read write open create unlink execute entrypoint setattr append relabelto relabelfrom }
class dir { read write open search add_name remove_name }
sensitivity s0;
dominance { s0 }
POLICY
for number in $(seq 0 1023); do echo "category c$number;"; done
cat <<'POLICY'
level s0:c0.c1023;
mlsconstrain file { read write open append execute entrypoint } ( h1 dom h2 or t1 == kernel_t or t1 == spc_t );
mlsconstrain dir { read write open search add_name remove_name } ( h1 dom h2 or t1 == kernel_t or t1 == spc_t );
policycap nnp_nosuid_transition;
attribute all;
attribute contained;
type kernel_t, all;
type tmpfs_t, all;
type container_file_t, all;
type other_t, all;
type container_t, all, contained;
type spc_t, all, contained;
role system_r;
role system_r types { kernel_t container_t spc_t };
allow kernel_t all : process *;
allow kernel_t all : process2 *;
allow kernel_t all : file *;
allow kernel_t all : dir *;
allow spc_t all : process *;
allow spc_t all : file *;
allow spc_t all : dir *;
allow contained self : process *;
allow contained { kernel_t spc_t container_t } : process { sigchld };
allow container_t { container_file_t tmpfs_t kernel_t container_t } : file *;
allow container_t { container_file_t tmpfs_t kernel_t container_t } : dir *;
user system_u roles { system_r } level s0 range s0 - s0:c0.c1023;
POLICY
for sid in $sids; do
    type=kernel_t role=system_r
    case $sid in file | unlabeled) type=tmpfs_t role=object_r ;; esac
    echo "sid $sid system_u:$role:$type:s0"
done
cat <<'POLICY'
fs_use_trans tmpfs system_u:object_r:tmpfs_t:s0;
fs_use_trans devtmpfs system_u:object_r:tmpfs_t:s0;
fs_use_trans devpts system_u:object_r:tmpfs_t:s0;
fs_use_trans mqueue system_u:object_r:tmpfs_t:s0;
fs_use_task pipefs system_u:object_r:tmpfs_t:s0;
fs_use_task sockfs system_u:object_r:tmpfs_t:s0;
fs_use_xattr overlay system_u:object_r:tmpfs_t:s0;
genfscon proc / system_u:object_r:kernel_t:s0
genfscon sysfs / system_u:object_r:kernel_t:s0
genfscon cgroup2 / system_u:object_r:kernel_t:s0
genfscon selinuxfs / system_u:object_r:kernel_t:s0
genfscon rootfs / system_u:object_r:tmpfs_t:s0
POLICY
