# The kernel asks our filter; each refusal is told from a device that is not there, which the node shows as another error.
dd if=/dev/kmsg of=/dev/null bs=8192 count=1 >/dev/null 2>&1
equal "the node itself reads its kernel log" 0 $?
node() { cofferdam run $image -- sh -c "$1"; }
refuses "a container reads no disk" "Operation not permitted" node "mknod /x b 8 0 && dd if=/x of=/dev/null count=1"
refuses "a container writes no disk" "Operation not permitted" node "mknod /x b 8 0 && echo a > /x"
refuses "a container reads no kernel log" "Operation not permitted" node "mknod /x c 1 11 && dd if=/x of=/dev/null bs=8192 count=1"
refuses "a container reads no memory" "Operation not permitted" node "mknod /x c 1 1 && dd if=/x of=/dev/null count=1"
check "null, zero, random and the terminal's are allowed" node \
    "echo a > /dev/null && head -c 9 /dev/zero > /dev/null && head -c 9 /dev/urandom > /dev/null && : < /dev/full && test -c /dev/ptmx && : <> /dev/ptmx"
check "the node of a device may be made" node "mknod /x b 8 0"
cofferdam run -d --name held $image >/dev/null
refuses "an exec is held by the same filter" "Operation not permitted" \
    cofferdam exec held sh -c "mknod /x c 1 11 && dd if=/x of=/dev/null bs=8192 count=1"
cofferdam rm -f held >/dev/null
