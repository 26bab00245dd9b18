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
        "cpuset_cpus": "0-1", "cpuset_mems": "0", "memory_limit_in_bytes": 67108864, "memory_swap_limit_in_bytes": 83886080,
        "oom_score_adj": -500, "hugepage_limits": [{"page_size": "2MB", "limit": 4194304}],
        "unified": {"pids.max": "40", "memory.high": "60000000"}}'
    launch "a container with limits starts"
    equal "cpu.max" "20000 100000" "$(file cpu.max)"
    equal "cpu.weight of 512 shares" 59 "$(file cpu.weight)"
    equal "cpuset.cpus" 0-1 "$(file cpuset.cpus)"
    equal "memory.max" 67108864 "$(file memory.max)"
    equal "memory.swap.max is what both have above memory" 16777216 "$(file memory.swap.max)"
    equal "hugetlb.2MB.max" 4194304 "$(file hugetlb.2MB.max)"
    equal "pids.max from a unified key" 40 "$(file pids.max)"
    equal "memory.high from a unified key" 59998208 "$(file memory.high)"
    equal "the OOM score" -500 "$(cat "/proc/$(cri inspect "$container" | sed -n 's/^ *"pid": \([0-9]*\).*/\1/p' | head -1)/oom_score_adj")"
    equal "the container reads its own limit" 67108864 "$(cri exec --sync "$container" cat /sys/fs/cgroup/memory.max 2>&1)"
    refuses "the container cannot change it" "Read-only" cri exec --sync "$container" sh -c 'echo max > /sys/fs/cgroup/memory.max'
    check "limits are changed while it runs" cri update --memory 100663296 --cpu-quota 30000 --cpu-period 100000 \
        --cpu-share 1024 --cpuset-cpus 1 "$container"
    equal "memory.max goes up" 100663296 "$(file memory.max)"
    equal "memory.swap.max: without a limit of both there is no swap" 0 "$(file memory.swap.max)"
    equal "cpu.max goes up" "30000 100000" "$(file cpu.max)"
    equal "cpu.weight of 1024 shares" 100 "$(file cpu.weight)"
    equal "cpuset.cpus shrinks" 1 "$(file cpuset.cpus)"
    equal "pids.max stays" 40 "$(file pids.max)"
    check "limits go down again" cri update --memory 50331648 --cpu-quota 10000 --cpu-period 50000 "$container"
    equal "memory.max goes down" 50331648 "$(file memory.max)"
    equal "cpu.max goes down" "10000 50000" "$(file cpu.max)"
    refuses "processors that the node does not have are refused" cpuset.cpus cri update --cpu-share 77 --cpuset-cpus 400 "$container"
    equal "and nothing is half done" 100 "$(file cpu.weight)"
    contains "its use is told" "$(echo "$container" | cut -c1-10)" "$(cri stats 2>&1)"
    forks=$(cri exec --sync "$container" sh -c 'i=0; while [ $i -lt 60 ]; do sleep 50 & i=$((i+1)); done' 2>&1)
    contains "the limit of processes holds" "fork" "$forks"
    remove

    pod_of holder
    container_of '"sh", "-c", "x=$(head -c 41943040 /dev/zero | tr \\\\0 x); echo held; sleep 4000"' '"resources": {"memory_limit_in_bytes": 268435456}'
    launch "a container that holds memory starts"
    holds() { [ "$(file memory.current)" -gt 40000000 ]; }
    until_true 60 holds
    refuses "a limit below the use is refused" "uses more" cri update --cpu-share 77 --memory 8388608 "$container"
    equal "its limit stays" 268435456 "$(file memory.max)"
    equal "nothing was killed" "oom_kill 0" "$(file memory.events | grep '^oom_kill ')"
    contains "it runs on" CONTAINER_RUNNING "$(cri inspect "$container")"
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
