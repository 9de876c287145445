#!/bin/bash
# node.sh start node2   (start.sh calls this; also brings a killed node back)
# node.sh kill  node2   pull the plug: slurmd and all of the node's job processes
#                       die at once (ISOLATE=1 only)
set -euo pipefail
LAB=${LAB:-/tmp/slurmlab/cluster}
ISOLATE=${ISOLATE:-1}
export SLURM_CONF=$LAB/etc/slurm.conf
node=$2
# NAME PID START, one a line: START (field 22 of /proc/PID/stat) tells a reused pid
start_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
case $1 in
start)
    if [ "$ISOLATE" = 1 ]; then
        # bash is the node's init: it reaps, and all of the node dies with it.
        # unshare blocks TERM itself; stop.sh tells the init.
        # shellcheck disable=SC2016  # the inner shell expands them
        setsid unshare --mount --propagation slave --uts --pid --fork --kill-child --mount-proc \
            bash -c 'hostname "$1"; mount --bind "$2/etc/hosts" /etc/hosts
                     slurmd -D -N "$1" & p=$!; trap "kill $p" TERM; wait $p; wait $p' init "$node" "$LAB" \
            < /dev/null > "$LAB/log/slurmd-$node.err" 2>&1 &
    else
        setsid slurmd -D -N "$node" < /dev/null > "$LAB/log/slurmd-$node.err" 2>&1 &
    fi
    echo "slurmd-$node $! $(start_of $!)" >> "$LAB/run/pids" ;;
kill)
    [ "$ISOLATE" = 1 ] || { echo "node.sh: kill needs ISOLATE=1" >&2; exit 1; }
    read -r _ pid start < <(grep "^slurmd-$node " "$LAB/run/pids" | tail -n 1)
    [ "$(start_of "$pid")" = "$start" ] || { echo "node.sh: $node is not running" >&2; exit 1; }
    kill -KILL "$pid" ;;
*) echo "usage: node.sh start|kill NODE" >&2; exit 2 ;;
esac
