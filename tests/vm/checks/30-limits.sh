# Limits as the kubelet sets them; only the CRI itself can ask for them.
pod_of() { # NAME: the configuration of a pod
    cat > /run/pod.json <<P
{"metadata": {"name": "$1", "namespace": "default", "uid": "$1", "attempt": 0},
 "log_directory": "/run/logs", "linux": {"cgroup_parent": "/kubepods/pod$1", "security_context": {$2}}}
P
}
container_of() { # COMMAND as JSON words, the members of linux
    cat > /run/container.json <<C
{"metadata": {"name": "main"}, "image": {"image": "$image"}, "command": [$1], "log_path": "main.log", "linux": {$2}}
C
}
# Not by `check`, which would keep the ids to itself.
launch() { # the check's name
    if pod=$(cri runp /run/pod.json) && container=$(cri create "$pod" /run/container.json /run/pod.json) &&
        cri start "$container" >/dev/null; then pass "$1"; else fail "$1" "pod $pod, container $container"; fi
}
remove() { cri rmp -f "$pod" >/dev/null 2>&1; }
ended() { cri inspect "$container" | grep -q CONTAINER_EXITED; }
field() { cri inspect "$container" | sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" | head -1; }
# The cgroup as the node sees it.
file() { cat "$(find $cgroups/kubepods -type d -name "*$container*" | head -1)/$1"; }

if has_crictl; then
    mkdir -p /run/logs
    # The kubelet makes the pods' parents, with the controllers handed down.
    echo "+cpu +memory +pids" > $cgroups/cgroup.subtree_control
    mkdir -p $cgroups/kubepods
    echo "+cpu +memory +pids" > $cgroups/kubepods/cgroup.subtree_control

    pod_of limits
    container_of '"sleep", "4000"' '"resources": {"cpu_quota": 20000, "cpu_period": 100000, "cpu_shares": 512,
        "memory_limit_in_bytes": 67108864, "unified": {"pids.max": "40"}}'
    launch "a container with limits starts"
    equal "cpu.max" "20000 100000" "$(file cpu.max)"
    equal "memory.max" 67108864 "$(file memory.max)"
    equal "pids.max" 40 "$(file pids.max)"
    echo "cpu.weight of 512 shares: $(file cpu.weight), memory.swap.max: $(file memory.swap.max 2>&1)"
    equal "the container reads its own limit" 67108864 "$(cri exec --sync "$container" cat /sys/fs/cgroup/memory.max 2>&1)"
    refuses "the container cannot change it" "Read-only" cri exec --sync "$container" sh -c 'echo max > /sys/fs/cgroup/memory.max'
    changed=$(cri update --memory 100663296 --cpu-quota 30000 --cpu-period 100000 "$container" 2>&1)
    case $changed in
        *"not served"*) skip "limits are changed while it runs: not served by this version" ;;
        *)
            equal "memory.max is changed while it runs" 100663296 "$(file memory.max)"
            equal "cpu.max is changed while it runs" "30000 100000" "$(file cpu.max)"
            ;;
    esac
    contains "its use is told" "$(echo "$container" | cut -c1-10)" "$(cri stats 2>&1)"
    forks=$(cri exec --sync "$container" sh -c 'i=0; while [ $i -lt 60 ]; do sleep 50 & i=$((i+1)); done' 2>&1)
    contains "the limit of processes holds" "fork" "$forks"
    remove

    pod_of oom
    container_of '"tail", "/dev/zero"' '"resources": {"memory_limit_in_bytes": 33554432, "memory_swap_limit_in_bytes": 33554432}'
    launch "a greedy container starts"
    until_true 30 ended
    equal "it ends for want of memory" OOMKilled "$(field reason)"
    equal "its exit code" 137 "$(field exitCode)"
    remove

    pod_of free '"privileged": true'
    container_of '"sh", "-c", "mknod /x c 1 11 && dd if=/x of=/dev/null bs=8192 count=1"' '"security_context": {"privileged": true}'
    launch "a privileged container starts"
    until_true 15 ended
    equal "it reads what the node reads" 0 "$(field exitCode)"
    remove
    rmdir $cgroups/kubepods/pod* 2>/dev/null
    check "the kubelet's folder is empty again" rmdir $cgroups/kubepods
else
    skip "limits: no crictl"
fi
