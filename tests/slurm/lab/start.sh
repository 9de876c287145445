#!/bin/bash
# Starts munged, slurmctld and N slurmds on 127.0.0.1; returns when every node is idle.
#   LAB=/tmp/x NODES=2 ./start.sh && . /tmp/x/env && sbatch job.sh;  LAB=/tmp/x ./stop.sh
# Needs (Debian 12): apt-get install -y --no-install-recommends slurm-wlm munge
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LAB=${LAB:-/tmp/slurmlab/cluster}
NODES=${NODES:-2}            # virtual nodes node1..nodeN
CPUS=${CPUS:-64}             # what each node claims to have
MEM=${MEM:-1000000}          # MB, claimed
GPUS=${GPUS:-4}              # fake GPUs per node, at least 1
GPUTYPE=${GPUTYPE:-}         # e.g. a100, for --gres=gpu:a100:4 (gpu:4 still works)
FEATURES=${FEATURES:-}       # e.g. a100,nvlink, for --constraint
PARTITIONS=${PARTITIONS:-main}   # e.g. "main gpu"; the first is the default
EXTRA=${EXTRA:-}             # more slurm.conf lines, e.g. preemption, more partitions
CTLPORT=${CTLPORT:-16817}    # slurmctld
NODEPORT=${NODEPORT:-16818}  # slurmd of node1; node2 has the next port, and so on
export ISOLATE=${ISOLATE:-1} # 1: each node in its own mount+UTS+PID namespace

die() { echo "start.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "needs root"
for c in munged slurmctld slurmd sbatch; do command -v $c > /dev/null || die "no $c: apt-get install slurm-wlm munge"; done
[ -e "$LAB/run/pids" ] && die "$LAB is in use; run stop.sh"
[ "${#LAB}" -le 80 ] || die "LAB is too long a path for a unix socket"
# slurmctld and srun bind to what the host's own name resolves to
getent ahostsv4 "$(hostname)" | grep -q '^127\.' || die "/etc/hosts must give $(hostname) as 127.0.0.1"
if [ "$ISOLATE" != 1 ]; then
    for i in $(seq "$NODES"); do
        getent ahostsv4 "node$i" | grep -q '^127\.' || die "ISOLATE=0: /etc/hosts must give node$i as 127.0.0.1"
    done
fi

rm -rf "$LAB"
mkdir -p "$LAB"/{etc,run,log,state,spool,dev}
chmod 755 "$LAB" "$LAB/run"          # munged refuses group- or world-writable folders
if [ "$NODES" = 1 ]; then nodelist=node1; else nodelist="node[1-$NODES]"; fi
last=$((GPUS - 1))
# links will do, but what they lead to must be a character device
for i in $(seq 0 $last); do ln -s /dev/null "$LAB/dev/nvidia$i"; done
fill() {
    sed -e "s|@LAB@|$LAB|g" -e "s|@CTLHOST@|$(hostname)|g" -e "s|@CTLPORT@|$CTLPORT|g" \
        -e "s|@NODELIST@|$nodelist|g" -e "s|@GPULAST@|$last|g" -e "s|@GPUTYPE@|${GPUTYPE:+Type=$GPUTYPE}|g" "$1"
}
fill "$here/gres.conf.in" > "$LAB/etc/gres.conf"
{
    fill "$here/slurm.conf.in"
    for i in $(seq "$NODES"); do
        echo "NodeName=node$i NodeAddr=127.0.0.1 Port=$((NODEPORT + i - 1)) CPUs=$CPUS Boards=1" \
            "SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM" \
            "Gres=gpu:${GPUTYPE:+$GPUTYPE:}$GPUS ${FEATURES:+Feature=$FEATURES} State=UNKNOWN"
        mkdir -p "$LAB/spool/node$i"
    done
    default=YES
    for p in $PARTITIONS; do
        echo "PartitionName=$p Nodes=ALL Default=$default MaxTime=INFINITE State=UP"
        default=NO
    done
    echo "$EXTRA"
} > "$LAB/etc/slurm.conf"
# the nodes' /etc/hosts, bind-mounted in their namespaces
{ cat /etc/hosts; echo; for i in $(seq "$NODES"); do echo "127.0.0.1 node$i"; done; } > "$LAB/etc/hosts"
echo "export SLURM_CONF=$LAB/etc/slurm.conf LAB=$LAB ISOLATE=$ISOLATE" > "$LAB/env"
# shellcheck source=/dev/null
. "$LAB/env"

note() { echo "$1 $2 $(sed 's/.*) //' "/proc/$2/stat" | cut -d' ' -f20)" >> "$LAB/run/pids"; }
(umask 077; head -c 128 /dev/urandom > "$LAB/etc/munge.key")
setsid munged --foreground --socket="$LAB/run/munge.socket.2" --key-file="$LAB/etc/munge.key" \
    --pid-file="$LAB/run/munged.pid" --log-file="$LAB/log/munged.log" --seed-file="$LAB/run/munged.seed" \
    < /dev/null > "$LAB/log/munged.err" 2>&1 &
note munged $!
for _ in $(seq 1200); do [ -S "$LAB/run/munge.socket.2" ] && break; sleep 0.05; done
if [ ! -S "$LAB/run/munge.socket.2" ]; then
    cat "$LAB/log/munged.err" >&2
    "$here/stop.sh"
    exit 1
fi
setsid slurmctld -D < /dev/null > "$LAB/log/slurmctld.err" 2>&1 &
note slurmctld $!
for i in $(seq "$NODES"); do "$here/node.sh" start "node$i"; done

idle=0
SECONDS=0
while [ $SECONDS -lt 180 ]; do
    idle=$(timeout 5 sinfo -h -N -p "${PARTITIONS%% *}" -o %T 2>/dev/null | grep -cx idle || true)
    [ "$idle" = "$NODES" ] && { sinfo; exit 0; }
    grep -q 'fatal:' "$LAB"/log/*.err && break   # a bad slurm.conf line, a port in use
    sleep 0.1
done
echo "start.sh: only $idle of $NODES nodes came up (waits 180 s at most)" >&2
tail -n 20 "$LAB"/log/*.err >&2
"$here/stop.sh" || true
exit 1
