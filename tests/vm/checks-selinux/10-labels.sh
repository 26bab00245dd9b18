# Pods are told apart by their labels: of processes, of files, and of the volumes that the kubelet says are theirs.
current="cat /proc/self/attr/current"
# The kernel ends a label with a zero byte.
text() { tr -d '\000'; }
equal "SELinux enforces" 1 "$(cat /sys/fs/selinux/enforce)"

# pod NAME SECURITY: makes a pod, sets $pod
pod() {
    printf '{"metadata":{"name":"%s","namespace":"d","uid":"%s"},"linux":{"security_context":%s}}' "$1" "$1" "$2" > /run/pod-$1.json
    pod=$(cri runp /run/pod-$1.json 2>/run/err) || fail "pod $1 runs" "$(cat /run/err; tail -5 /run/daemon.log)"
    echo "$pod" > /run/pod-$1.id
}
# container POD-NAME NAME MOUNTS SECURITY: makes a container that sleeps, sets $made; answers whether it started
container() {
    printf '{"metadata":{"name":"%s"},"image":{"image":"%s"},"command":["sleep","999"],"log_path":"","mounts":%s,"linux":{"security_context":%s}}' \
        "$2" $image "$3" "$4" > /run/ctr.json
    made=$(cri create --no-pull "$(cat /run/pod-$1.id)" /run/ctr.json /run/pod-$1.json 2>/run/err) && cri start "$made" >/dev/null 2>/run/err
}
in_it() { cri exec "$@" 2>&1 | text; }
of_process() { text < "/proc/$1/attr/current"; }
pid_of() { cri inspect -o go-template --template '{{.info.pid}}' "$1" 2>/dev/null; }
# label_of CONTAINER: as the kernel tells from outside
label_of() { of_process "$(pid_of "$1")"; }
file_label() { getfattr --absolute-names --only-values -n security.selinux "$1" 2>&1 | text; }
volume() { printf '[{"container_path":"/v","host_path":"%s","selinux_relabel":%s}]' "$1" "${2:-true}"; }

if has_crictl; then
    for name in one two; do
        mkdir -p /srv/$name/deep
        echo secret-$name > /srv/$name/deep/file
    done
    pod one '{}'
    one=$pod
    container one c "$(volume /srv/one)" '{}' && pass "a container runs" || fail "a container runs" "$(cat /run/err)"
    first=$made
    pod two '{}'
    two=$pod
    container two c "$(volume /srv/two)" '{}' && pass "another pod's runs" || fail "another pod's runs" "$(cat /run/err)"
    second=$made

    label=$(in_it $first $current)
    level=${label#system_u:system_r:container_t:}
    case $level in
        s0:c[0-9]*,c[0-9]*) pass "a process is labelled ($label)" ;;
        *) fail "a process is labelled" "$label" ;;
    esac
    equal "an exec has the label of the first process" "$(label_of $first)" "$label"
    equal "the pause process has its pod's" "$label" "$(of_process "$(cri inspectp -o go-template --template '{{.info.pid}}' $one)")"
    other=$(in_it $second $current)
    case $other in
        "$label" | '') fail "two pods have different labels" "$label $other" ;;
        *) pass "two pods have different labels ($other)" ;;
    esac
    files="system_u:object_r:container_file_t:$level"
    mounts=$(in_it $first cat /proc/self/mountinfo)
    for place in / /dev /dev/pts /dev/shm; do
        contains "$place has the pod's label" "context=\"$files\"" "$(echo "$mounts" | grep " $place rw\| $place ro")"
    done
    equal "so has the hosts file" "$files" "$(file_label /run/cofferdam/sandboxes/$one/hosts)"
    equal "a volume is relabelled" "$files" "$(file_label /srv/one/deep/file)"
    equal "its root too" "$files" "$(file_label /srv/one)"
    equal "its pod reads it" secret-one "$(in_it $first cat /v/deep/file)"
    check "its pod writes it" cri exec $first sh -c 'echo more > /v/deep/new'
    equal "what it makes has its label" "$files" "$(file_label /srv/one/deep/new)"

    container two thief "$(volume /srv/one false)" '{}'
    contains "another pod may not read it" "Permission denied" "$(in_it $made cat /v/deep/file)"
    container one mate "$(volume /srv/one)" '{}'
    equal "another container of the pod may" secret-one "$(in_it $made cat /v/deep/file)"
    equal "for it has the same label" "$label" "$(in_it $made $current)"

    container one own '[]' '{"selinux_options":{"level":"s0:c7,c9"}}'
    equal "a level that is asked for is given" "system_u:system_r:container_t:s0:c7,c9" "$(in_it $made $current)"
    container one bad '[]' '{"selinux_options":{"type":"no_such_t"}}'
    contains "a label that the policy does not know is refused" "the policy does not know it" "$(cat /run/err)"
    container one sys "$(volume /etc)" '{}'
    contains "a folder of the system is not relabelled" "is a folder of the node's system" "$(cat /run/err)"

    container one nnp '[]' '{"no_new_privs":true}'
    equal "the label goes with no_new_privs" "$label" "$(in_it $made $current)"
    pod three '{"privileged":true}'
    container three c "$(volume /srv/one false)" '{"privileged":true}' || cat /run/err
    contains "a privileged container is spc_t" "system_u:system_r:spc_t:s0" "$(in_it $made $current)"
    equal "it reads any pod's volume" secret-one "$(in_it $made cat /v/deep/file)"
    cri rmp -f $pod >/dev/null 2>&1

    stop_daemon
    sh -c "echo \$\$ > $service/cgroup.procs; exec cofferdam serve" > /run/daemon.log 2>&1 &
    daemon=$!
    until_true 60 cofferdam info
    container one late '[]' '{}'
    equal "after a restart the pod has its level still" "$label" "$(in_it $made $current)"
    cri rmp -f $one $two >/dev/null 2>&1
else
    skip "labels of pods: no crictl"
fi
