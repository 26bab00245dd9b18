# The main job through our own command line.
check "an archive is imported" cofferdam import /demo.tar
equal "run gives the command's output" "hello from cgroup2" "$(cofferdam run $image -- echo hello from cgroup2 2>/run/err)"
[ -s /run/err ] && cat /run/err
cofferdam run $image -- sh -c 'exit 7' >/dev/null 2>&1
equal "run gives the command's exit code" 7 $?
refuses "a program that is not there is named" "no-such-program" cofferdam run $image -- no-such-program

check "a pod is left running" cofferdam run -d --name web -p 8080:80 $image
address=$(cofferdam inspect web | grep -oE '"ip": *"[0-9.]+"' | head -1 | grep -oE '[0-9.]+')
until_true 10 wget -q -O /run/page "http://$address/"
equal "its page comes over the bridge" "Hello from a pod of Cofferdam." "$(cat /run/page)"
equal "its page comes through the node's port" "Hello from a pod of Cofferdam." "$(wget -q -O - http://192.0.2.1:8080/ 2>&1)"
equal "its page comes through the port on localhost" "Hello from a pod of Cofferdam." "$(wget -q -O - http://127.0.0.1:8080/ 2>&1)"

equal "exec runs beside it" "root" "$(cofferdam exec web id -un 2>&1)"
equal "exec sees only the container's own cgroup" "0::/" "$(cofferdam exec web sh -c 'cat /proc/1/cgroup' 2>&1)"
stats=$(cofferdam stats 2>&1)
contains "stats tell of it" "web" "$stats"
echo "$stats"

# The timeout ends what the command started, wherever it went.
cofferdam exec --timeout 2 web sh -c 'setsid sleep 4001 & (sleep 4002 &) ; sleep 4003' >/dev/null 2>&1
sleep 1
equal "an exec's timeout ends its whole tree" "" "$(ps -o args | grep 'sleep 400' | grep -v grep)"
equal "an exec's cgroup is gone with it" "" "$(find $cgroups -type d -name 'exec-*')"
equal "the pod runs on" "root" "$(cofferdam exec web id -un 2>&1)"

check "stop" cofferdam stop web
check "rm" cofferdam rm web
equal "rm leaves no pod" "" "$(ls /run/cofferdam/sandboxes 2>/dev/null)"
