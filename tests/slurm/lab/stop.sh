#!/bin/bash
# Stops what start.sh started, by the pids it wrote down, and nothing else.
set -uo pipefail
LAB=${LAB:-/tmp/slurmlab/cluster}
[ -e "$LAB/run/pids" ] || { echo "stop.sh: nothing is running in $LAB"; exit 0; }
export SLURM_CONF=$LAB/etc/slurm.conf

# ours and alive? a zombie that its parent has yet to reap counts as gone
alive() {
    local stat
    local -a fields
    stat=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 1
    read -r -a fields <<<"$stat"
    [ "${fields[0]}" != Z ] && [ "${fields[19]}" = "$2" ]
}
gone() { # PID START SECONDS
    local n=$(($3 * 20))
    while [ $n -gt 0 ]; do alive "$1" "$2" || return 0; sleep 0.05; n=$((n - 1)); done
    return 1
}

# jobs first, so that no slurmstepd outlives its slurmd (3 s, then by force)
mapfile -t jobs < <(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
if [ "${#jobs[@]}" -gt 0 ]; then
    timeout 5 scancel "${jobs[@]}" 2>/dev/null
    for _ in $(seq 60); do [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.05; done
    mapfile -t jobs < <(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
    [ "${#jobs[@]}" -gt 0 ] && timeout 5 scancel --signal=KILL --full "${jobs[@]}" 2>/dev/null && sleep 1
fi

end() { # NAME PID START
    alive "$2" "$3" || return 0
    local target=$2 child
    child=$(cat "/proc/$2/task/$2/children" 2>/dev/null)
    # unshare blocks TERM: tell the node's init instead
    [ "$(cat "/proc/$2/comm" 2>/dev/null)" = unshare ] && [ -n "$child" ] && target=${child%% *}
    kill -TERM "$target" 2>/dev/null
    gone "$2" "$3" 5 && return 0
    echo "stop.sh: $1 ($2) did not end on TERM, killing it" >&2
    kill -KILL "$2" 2>/dev/null
    gone "$2" "$3" 5
}
rc=0
# nodes together, then the controller, then munged
while read -r name pid start; do
    case $name in slurmd-*) end "$name" "$pid" "$start" & esac
done < "$LAB/run/pids"
wait
while read -r name pid start; do
    case $name in slurmctld) end "$name" "$pid" "$start" || rc=1 ;; esac
done < "$LAB/run/pids"
while read -r name pid start; do
    case $name in munged) end "$name" "$pid" "$start" || rc=1 ;; esac
done < "$LAB/run/pids"
while read -r name pid start; do
    alive "$pid" "$start" && { echo "stop.sh: $name ($pid) is still there" >&2; rc=1; }
done < "$LAB/run/pids"
[ $rc = 0 ] && rm -f "$LAB/run/pids"
exit $rc
