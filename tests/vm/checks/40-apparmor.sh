# Containers run under the default profile that the daemon loaded, or under the one they ask for.
label() { cofferdam run $image -- cat /proc/self/attr/current 2>&1; }
contains "the default profile is loaded" "cofferdam-default (enforce)" "$(cat /sys/kernel/security/apparmor/profiles)"
equal "a container runs under it" "cofferdam-default (enforce)" "$(label)"
cofferdam run -d --name guarded $image >/dev/null
equal "an exec runs under it" "cofferdam-default (enforce)" "$(cofferdam exec guarded cat /proc/self/attr/current 2>&1)"
check "its own processes may be signalled" cofferdam exec guarded sh -c 'sleep 99 & kill $!'
check "/tmp may be written" cofferdam exec guarded sh -c 'echo a > /tmp/a'
check "it stops" cofferdam stop guarded
cofferdam rm -f guarded >/dev/null

printf '%s\n' 'profile no-write flags=(attach_disconnected) { capability, file, network, unix, signal, deny /tmp/** w, }' |
    apparmor_parser --replace 2>/dev/null
# with_profile SECURITY [COMMAND]: runs a container with this security context, and answers what happened
with_profile() {
    command=${2:-echo a > /tmp/a}
    printf '{"metadata":{"name":"aa","namespace":"d","uid":"aa"},"linux":{}}' > /run/aa-pod.json
    printf '{"metadata":{"name":"c"},"image":{"image":"%s"},"command":["sh","-c","%s"],"log_path":"","linux":{"security_context":%s}}' \
        $image "$command" "$1" > /run/aa-ctr.json
    pod=$(cri runp /run/aa-pod.json 2>/run/err) || return 1
    if made=$(cri create --no-pull $pod /run/aa-ctr.json /run/aa-pod.json 2>/run/err); then
        cri start $made >/dev/null 2>&1
        until_true 20 sh -c "crictl inspect $made 2>/dev/null | grep -q CONTAINER_EXITED"
        made="exit code $(cri inspect $made 2>/dev/null | sed -n 's/.*"exitCode": *\([0-9]*\).*/\1/p' | head -1)"
    else
        made=$(cat /run/err)
    fi
    cri rmp -f $pod >/dev/null 2>&1
    echo "$made"
}
if has_crictl; then
    contains "a profile that is not loaded is named" 'is not available on this node: it is not loaded' \
        "$(with_profile '{"apparmor":{"profile_type":2,"localhost_ref":"nosuch"}}')"
    equal "a profile of the node's is enforced" "exit code 1" "$(with_profile '{"apparmor":{"profile_type":2,"localhost_ref":"no-write"}}')"
    equal "the older field serves as well" "exit code 1" "$(with_profile '{"apparmor_profile":"localhost/no-write"}')"
    equal "unconfined is" "exit code 0" "$(with_profile '{"apparmor":{"profile_type":1}}')"
    equal "the default profile lets /tmp be written" "exit code 0" "$(with_profile '{"apparmor":{"profile_type":0}}')"
    admin='"capabilities":{"add_capabilities":["SYS_ADMIN"]}'
    equal "unconfined, an administrator may mount" "exit code 0" \
        "$(with_profile "{\"apparmor\":{\"profile_type\":1},$admin}" 'mount -t tmpfs t /tmp')"
    equal "under the default profile even an administrator may not" "exit code 255" "$(with_profile "{$admin}" 'mount -t tmpfs t /tmp')"
    # As an operator's `aa-teardown` would.
    printf cofferdam-default > /sys/kernel/security/apparmor/.remove
    equal "a default profile that went away is loaded again" "cofferdam-default (enforce)" "$(label)"
else
    skip "profiles of the node: no crictl"
fi
