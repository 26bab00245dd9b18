# The suite of the CRI, as far as this machine can run it. Each spec that fails is a line.
set -- --runtime-endpoint=unix:///run/cofferdam/cofferdam.sock --image-endpoint=unix:///run/cofferdam/cofferdam.sock \
    --config=/dev/null --ginkgo.no-color
[ ! -s /focus ] || set -- "$@" "--ginkgo.focus=$(cat /focus)"
[ ! -s /skip ] || set -- "$@" "--ginkgo.skip=$(cat /skip)"
mkdir -p /run/critest
(cd /run/critest && critest "$@" > log 2>&1)
status=$?
grep -E '^ *\[(FAIL|SKIPPED|TIMEDOUT|PANICKED)\]|^S \[SKIP' /run/critest/log | sort -u
ran=$(grep -E '^Ran [0-9]+ of [0-9]+' /run/critest/log)
counts=$(grep -E 'Passed.*Failed' /run/critest/log)
echo "$ran"
echo "$counts"
if [ -z "$ran" ]; then fail "critest comes to its end" "exit $status $(tail -30 /run/critest/log)"
elif [ $status = 0 ]; then pass "critest: $ran"
else fail "critest: $ran" "$counts"; fi
