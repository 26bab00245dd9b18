# With systemd as the driver, a pod is one delegated scope, whatever it holds.
slice=/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podsys.slice
mkdir -p /run/logs
v2() { [ -e $cgroups/cgroup.controllers ]; }
pod_of() { # NAME SLICE
    cat > /run/pod.json <<P
{"metadata": {"name": "$1", "namespace": "default", "uid": "$1", "attempt": 0},
 "log_directory": "/run/logs", "linux": {"cgroup_parent": "$2", "security_context": {}}}
P
}
launch() { # NAME COMMAND as JSON words, the members of linux: sets $container
    cat > /run/container.json <<C
{"metadata": {"name": "$1"}, "image": {"image": "$image"}, "command": [$2], "log_path": "$1.log", "linux": {$3}}
C
    if container=$(cri create "$pod" /run/container.json /run/pod.json) && cri start "$container" >/dev/null
    then pass "$1 starts"; else fail "$1 starts" "$container $(tail -5 /run/daemon.log)"; fi
}
pid() { cri inspect "$1" | sed -n 's/^ *"pid": \([0-9]*\).*/\1/p' | head -1; }
file() { # CONTAINER CONTROLLER FILE
    if v2; then cat "$cgroups$slice/cri-cofferdam-$pod.scope/$1/$3"; else cat "$cgroups/$2$slice/cri-cofferdam-$pod.scope/$1/$3"; fi
}
scopes() { systemctl list-units --type=scope --plain --no-legend 'cri-*' | wc -l; }
field() { cri inspect "$container" | sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" | head -1; }
ended() { cri inspect "$container" | grep -q CONTAINER_EXITED; }
limits() { # of $first: memory, quota, weight
    if v2; then echo $(file "$first" memory memory.max) $(file "$first" cpu cpu.max) $(file "$first" cpu cpu.weight)
    else echo $(file "$first" memory memory.limit_in_bytes) $(file "$first" cpu cpu.cfs_quota_us) $(file "$first" cpu cpu.shares); fi
}

contains "the kubelet is told of systemd" SYSTEMD "$(cri info | grep -i cgroupDriver)"
pod_of sys $slice
if pod=$(cri runp /run/pod.json); then pass "a pod runs"; else fail "a pod runs" "$pod $(tail -5 /run/daemon.log)"; fi
scope=cri-cofferdam-$pod.scope
equal "its scope is active" active "$(systemctl is-active $scope)"
equal "its scope is delegated" yes "$(systemctl show -P Delegate $scope)"
equal "its scope is in the kubelet's slice" "$(basename $slice)" "$(systemctl show -P Slice $scope)"
equal "systemd sees it where the kubelet put it" "$slice/$scope" "$(systemctl show -P ControlGroup $scope)"
launch main '"sleep", "4000"' '"resources": {"cpu_quota": 20000, "cpu_period": 100000, "cpu_shares": 512, "memory_limit_in_bytes": 67108864,
    "hugepage_limits": [{"page_size": "2MB", "limit": 4194304}]}'
first=$container
launch second '"sleep", "4000"' '"resources": {}'
equal "two containers are one scope" 1 "$(scopes)"
own=$(grep -E '^(0:|.*name=systemd)' "/proc/$(pid "$first")/cgroup" | cut -d: -f3 | sort -u)
equal "a container is below the scope" "$slice/$scope/$first" "$own"
if v2; then wanted="67108864 20000 100000 59"; else wanted="67108864 20000 512"; fi
equal "its limits" "$wanted" "$(limits)"
if v2; then huge=hugetlb.2MB.max; else huge=hugetlb.2MB.limit_in_bytes; fi
equal "its huge pages" 4194304 "$(file "$first" hugetlb $huge)"
check "systemd reads its units again" systemctl daemon-reload
equal "its limits stay" "$wanted" "$(limits)"
check "limits are changed while it runs" cri update --memory 100663296 --cpu-quota 30000 --cpu-period 100000 "$first"
if v2; then wanted="100663296 30000 100000 59"; else wanted="100663296 30000 512"; fi
equal "its new limits" "$wanted" "$(limits)"
check "systemd reads its units once more" systemctl daemon-reload
equal "its new limits stay" "$wanted" "$(limits)"
equal "exec runs in it" root "$(cri exec --sync "$first" id -un 2>&1)"
systemctl restart cofferdam.service
until_true 60 cofferdam info
equal "containers run on over the daemon's restart" root "$(cri exec --sync "$first" id -un 2>&1)"
launch greedy '"tail", "/dev/zero"' '"resources": {"memory_limit_in_bytes": 33554432}'
until_true 30 ended
equal "it ends for want of memory" OOMKilled "$(field reason)"
check "the pod is removed" cri rmp -f "$pod"
gone() { [ "$(scopes)" = 0 ]; }
until_true 10 gone
equal "no scope is left" 0 "$(scopes)"
equal "none has failed" "" "$(systemctl list-units --failed --plain --no-legend)"

pod_of plain /kubepods/podplain
refuses "a parent that is no slice is refused" "slice" cri runp /run/pod.json
pod_of alone ""
if pod=$(cri runp /run/pod.json); then pass "a pod without a parent runs"; else fail "a pod without a parent runs" "$pod"; fi
equal "it has the default slice" cofferdam.slice "$(systemctl show -P Slice "cri-cofferdam-$pod.scope")"
check "it is removed" cri rmp -f "$pod"
