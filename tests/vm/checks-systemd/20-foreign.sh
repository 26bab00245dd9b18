# A foreign shim has its OCI runtime make a unit for each container, as it expects.
if [ -x /usr/bin/runc ]; then
    slice=/kubepods.slice/kubepods-podforeign.slice
    pod_of foreign $slice
    if pod=$(cri runp --runtime runc /run/pod.json); then pass "a foreign pod runs"; else fail "a foreign pod runs" "$pod $(tail -5 /run/daemon.log)"; fi
    launch foreign '"sleep", "4000"' '"resources": {"memory_limit_in_bytes": 67108864, "cpu_quota": 20000, "cpu_period": 100000}'
    file() { # CONTAINER CONTROLLER FILE
        if v2; then cat "$cgroups$slice/cri-cofferdam-$1.scope/$3"; else cat "$cgroups/$2$slice/cri-cofferdam-$1.scope/$3"; fi
    }
    memory() { if v2; then file "$container" memory memory.max; else file "$container" memory memory.limit_in_bytes; fi; }
    equal "its container is a scope of its own" active "$(systemctl is-active "cri-cofferdam-$container.scope")"
    equal "its limit" 67108864 "$(memory)"
    check "its limit is changed while it runs" cri update --memory 100663296 "$container"
    equal "its new limit" 100663296 "$(memory)"
    contains "its use is told" "$(echo "$container" | cut -c1-10)" "$(cri stats 2>&1)"
    check "the foreign pod is removed" cri rmp -f "$pod"
    until_true 10 gone
    equal "no scope of a foreign pod is left" 0 "$(scopes)"
else
    skip "a foreign shim: no containerd-shim-runc-v2 and runc on the machine that built this one"
fi
