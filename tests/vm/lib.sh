# What the checks share. Each check prints one line that begins with PASS, FAIL or SKIP.
image=docker.io/library/demo:latest
cgroups=/sys/fs/cgroup
service=$cgroups/system.slice/cofferdam.service
daemon=

pass() { echo "PASS $*"; }
skip() { echo "SKIP $*"; }
fail() { # NAME, then what was seen
    echo "FAIL $1"
    shift
    echo "$*" | sed 's/^/     | /'
}
# check NAME COMMAND...: the command succeeds
check() {
    name=$1
    shift
    if out=$("$@" 2>&1); then pass "$name"; else fail "$name" "$* -> $? $out"; fi
}
# refuses NAME TEXT COMMAND...: the command fails and says TEXT
refuses() {
    name=$1 text=$2
    shift 2
    if out=$("$@" 2>&1); then fail "$name" "it was let: $out"; return; fi
    case $out in *"$text"*) pass "$name" ;; *) fail "$name" "refused otherwise: $out" ;; esac
}
# equal NAME WANTED SEEN
equal() { if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "wanted [$2], saw [$3]"; fi; }
# contains NAME TEXT SEEN
contains() { case $3 in *"$2"*) pass "$1" ;; *) fail "$1" "wanted [$2] in [$3]" ;; esac; }
# until_true SECONDS COMMAND...
until_true() {
    left=$(($1 * 5))
    shift
    while [ $left -gt 0 ]; do
        "$@" >/dev/null 2>&1 && return 0
        left=$((left - 1))
        sleep 0.2
    done
    return 1
}
has_crictl() { command -v crictl >/dev/null; }
cri() { crictl --timeout 60s "$@"; }

# As systemd starts it: in a cgroup of its own, so that no container's is made inside of the daemon's.
start_daemon() {
    mounts_before=$(cut -d' ' -f2 /proc/mounts | sort)
    if [ -e /systemd-mode ]; then
        mkdir -p /etc/cofferdam
        echo 'cgroup_driver = "systemd"' > /etc/cofferdam/config.toml
        [ ! -x /usr/bin/runc ] || printf '[runtimes.runc]\npath = "/usr/bin/containerd-shim-runc-v2"\nbinary = "/usr/bin/runc"\n' \
            >> /etc/cofferdam/config.toml
        systemctl start cofferdam.service
        daemon=$(systemctl show -P MainPID cofferdam.service)
    else
        mkdir -p /etc/cofferdam
        [ ! -e /selinux.policy ] || echo 'selinux = true' > /etc/cofferdam/config.toml
        # As systemd hands them down.
        for folder in $cgroups $cgroups/system.slice; do
            mkdir -p $folder
            echo "+cpu +io +memory +pids" > $folder/cgroup.subtree_control
        done
        mkdir -p $service
        sh -c "echo \$\$ > $service/cgroup.procs; exec cofferdam serve" > /run/daemon.log 2>&1 &
        daemon=$!
    fi
    if until_true 60 cofferdam info; then pass "the daemon is ready"; else fail "the daemon is ready" "$(cat /run/daemon.log)"; fi
}

stop_daemon() {
    if [ -e /systemd-mode ]; then
        systemctl stop cofferdam.service
        [ "$(systemctl show -P Result cofferdam.service)" = success ]
    else
        kill -TERM $daemon
        wait $daemon
    fi
}

# systemd keeps cgroups of its own, and takes those of ended scopes away in its own time.
left_cgroups() {
    if [ -e /systemd-mode ]; then
        find $cgroups -mindepth 1 -type d | grep -E '/(cri-|exec-|[0-9a-f]{64})'
    else
        find $cgroups -mindepth 1 -type d | grep -vE "/system.slice(/cofferdam.service)?$"
    fi
}
no_cgroups() { [ -z "$(left_cgroups)" ]; }

# Nothing may stay behind once all pods are removed and the daemon has ended.
finish() {
    for pod in /run/cofferdam/sandboxes/*; do
        [ -d "$pod" ] && cofferdam rm -f "$(basename "$pod")"
    done
    equal "no process of a pod is left" "" "$(ps -o args | grep -E 'shim-cofferdam|/pause' | grep -v grep)"
    stop_daemon
    equal "the daemon ends well" 0 $?
    until_true 5 no_cgroups
    equal "no cgroup is left" "" "$(left_cgroups)"
    equal "no mount is left" "$mounts_before" "$(cut -d' ' -f2 /proc/mounts | sort)"
    equal "no link is left" "lo" "$(ls /sys/class/net | grep -v -E '^(bonding_masters|eth0)$' | tr '\n' ' ' | sed 's/ $//')"
    rules=$(nft list ruleset)
    case $rules in *dnat*|*10.*) fail "no rule of a pod is left" "$rules" ;; *) pass "no rule of a pod is left" ;; esac
    [ -z "$(grep -E 'WARN|ERROR' /run/daemon.log)" ] || { echo "the daemon's warnings:"; grep -E 'WARN|ERROR' /run/daemon.log; }
}
