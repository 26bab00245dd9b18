# The suite of the CRI, as far as this machine can run it. A line for each spec as it ends, so that a machine that runs
# out of time still tells how far it came.
set -- --runtime-endpoint=unix:///run/cofferdam/cofferdam.sock --image-endpoint=unix:///run/cofferdam/cofferdam.sock \
    --config=/dev/null --ginkgo.no-color --ginkgo.v
[ ! -s /focus ] || set -- "$@" "--ginkgo.focus=$(cat /focus)"
[ ! -s /skip ] || set -- "$@" "--ginkgo.skip=$(cat /skip)"
[ ! -S /run/cofferdam/nri.sock ] || set -- "$@" --nri-socket=/run/cofferdam/nri.sock
mkdir -p /run/critest
(cd /run/critest && critest "$@" 2>&1; echo "exit status $?") | tee /run/critest/log |
    awk '/^\[k8s.io\]/ { name = $0 } /^(•|S \[|P \[)/ { print $0, name; fflush() } /^exit status/ { print }'
ran=$(grep -E '^Ran [0-9]+ of [0-9]+' /run/critest/log)
counts=$(grep -E 'Passed.*Failed' /run/critest/log)
grep -E '^ *\[(FAIL|TIMEDOUT|PANICKED)\]' /run/critest/log | sort -u
if [ -z "$ran" ]; then fail "critest comes to its end" "$(tail -30 /run/critest/log)"
elif grep -q '^exit status 0' /run/critest/log; then pass "critest: $ran: $counts"
else fail "critest: $ran" "$counts"; fi
