# The unit that users get: what systemd is told, and that containers outlive whatever happens to the daemon.
unit=cofferdam.service
shown() { systemctl show -P "$1" $unit; }
status_says() { case $(shown StatusText) in *"$1"*) ;; *) return 1 ;; esac; }
# The script's number grows for as long as the container lives, whoever watches it.
count() { tail -1 /run/logs/unit.log | sed 's/.* //'; }
started_of() { cri inspect "$1" | sed -n 's/^ *"startedAt": "\(.*\)",*/\1/p' | head -1; }
# back NAME PID: another process serves, the container is the same one and runs on
back() {
    changed() { now=$(shown MainPID); [ "$now" != "$1" ] && [ "$now" != 0 ] && [ "$(shown ActiveState)" = active ]; }
    if until_true 90 changed "$2" && until_true 30 cofferdam info; then pass "$1: another daemon serves"
    else fail "$1: another daemon serves" "$(systemctl status $unit --no-pager -n 0) $(tail -5 /run/daemon.log)"; fi
    equal "$1: the container is the same" "$began" "$(started_of "$container")"
    equal "$1: exec works" root "$(cri exec --sync "$container" id -un 2>&1)"
    seen=$(count)
    grows() { [ "$(count)" -gt "$seen" ]; }
    check "$1: it counts on" until_true 20 grows
}

equal "systemd waits for the daemon's word" notify "$(shown Type)"
equal "the daemon has said it" active "$(shown ActiveState)"
check "it has said what it does" until_true 10 status_says Serving
equal "nothing else is killed with it" process "$(shown KillMode)"
equal "it is spared when memory is short" -999 "$(cat /proc/"$(shown MainPID)"/oom_score_adj)"
equal "it may open many files" 1048576 "$(grep 'open files' /proc/"$(shown MainPID)"/limits | awk '{ print $4 }')"

pod_of unit $slice
if pod=$(cri runp /run/pod.json); then pass "a pod runs"; else fail "a pod runs" "$pod $(tail -5 /run/daemon.log)"; fi
launch unit '"/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done"' '"resources": {}'
began=$(started_of "$container")
equal "the container is not spared" 0 "$(cat /proc/"$(pid "$container")"/oom_score_adj)"
equal "it knows nothing of the supervisor" PATH "$(tr '\0' '\n' < /proc/"$(pid "$container")"/environ | grep -oE '^(PATH|NOTIFY|WATCHDOG)' | sort -u)"

before=$(shown MainPID)
check "systemctl restart" systemctl restart $unit
back "restarted" "$before"
before=$(shown MainPID)
check "systemctl kill -s KILL" systemctl kill -s KILL --kill-who=main $unit
back "killed" "$before"
before=$(shown MainPID)
kill -STOP "$before"
back "stopped by SIGSTOP" "$before"
equal "systemd did both by itself" 2 "$(shown NRestarts)"
check "systemctl stop" systemctl stop $unit
equal "it has ended well" "inactive success" "$(shown ActiveState) $(shown Result)"
seen=$(count)
grows() { [ "$(count)" -gt "$seen" ]; }
check "the container counts on without a daemon" until_true 20 grows
check "systemctl start" systemctl start $unit
back "started again" 0
numbers=$(sed 's/.* //' /run/logs/unit.log | awk 'NR != $1 { print "line " NR " says " $1; exit }')
equal "no line of its log is missing" "" "$numbers"
check "the pod is removed" cri rmp -f "$pod"
daemon=$(shown MainPID)
