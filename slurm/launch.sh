#!/usr/bin/env bash
# What the job scripts share: the environment, the preflight, the command on every rank, the requeue. They source this
# file with the repository's path in $home; README.md beside it explains every variable.

say() { echo "megafuser: $*" >&2; }

die() {
    say "error: $*"
    exit 2
}

# A controller that is busy, or just starts again, is asked again; what it refuses, it refuses.
ask_scontrol() { # [ARGUMENT ...]
    local attempt errors
    for attempt in 1 2 3 4 5; do
        { errors=$(scontrol "$@" 2>&1 >&3) && return; } 3>&1
        [[ -z $errors ]] || echo "$errors" >&2
        [[ $errors == *"contact slurm controller"* || $errors == *"timed out"* ]] || return
        ((attempt == 5)) || sleep 15
    done
    return 1
}

# A stage: checked first, then run, and put back into the queue where it was stopped early.
run_stage() { # STAGE [ARGUMENT ...]
    local stage=$1 code=0
    [[ ${MEGAFUSER_MAX_REQUEUES:-5} =~ ^(0|[1-9][0-9]*)$ ]] ||
        die "MEGAFUSER_MAX_REQUEUES=$MEGAFUSER_MAX_REQUEUES is not a number of requeues; set it to 0 or more"
    [[ ${MEGAFUSER_PREFLIGHT:-on} == @(on|off) ]] ||
        die "MEGAFUSER_PREFLIGHT=$MEGAFUSER_PREFLIGHT is neither on nor off; set it to one of them"
    set_up
    with_config "${@:2}"
    if [[ ${MEGAFUSER_PREFLIGHT:-on} == on ]]; then
        on_all_ranks megafuser.preflight "$stage" "${arguments[@]}" || code=$?
    fi
    if ((code == 0)); then
        on_all_ranks megafuser "$stage" "${arguments[@]}" || code=$?
    fi
    if ((code == 75)); then
        if is_trial; then
            say "stopped early; a trial is not requeued"
        else
            requeue
        fi
    fi
    exit "$code"
}

is_trial() {
    local argument
    for argument in "${arguments[@]}"; do
        if [[ $argument == --trial || $argument == --trial=* ]]; then
            return
        fi
    done
    return 1
}

# A command that uses a checkpoint, which has its configuration: the model is spread over all tasks.
run_model() { # COMMAND [ARGUMENT ...]
    set_up
    on_all_ranks megafuser "$@"
}

# What Slurm starts again goes on with its own answers, if it got as far as to overwrite what was there before them.
run_evaluation() { # [ARGUMENT ...]
    local argument previous='' out='' begun=no
    for argument; do
        [[ $previous != --out ]] || out=$argument
        [[ $argument != --out=* ]] || out=${argument#--out=}
        previous=$argument
    done
    if [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] && grep -qs '"finished": false' "$out/evaluation.json" &&
        grep -qs "\"slurm_job\": \"$SLURM_JOB_ID\"" "$out/evaluation.json"; then
        begun=yes
    fi
    arguments=()
    for argument; do
        if [[ $argument != --overwrite || $begun == no ]]; then
            arguments+=("$argument")
        fi
    done
    run_model evaluate "${arguments[@]}"
}

# By default `serve` listens at 127.0.0.1, where nobody outside the compute node reaches it: with a key it listens
# everywhere, and without one the user has to say where.
run_server() { # [ARGUMENT ...]
    local argument key=${MEGAFUSER_API_KEY:-} host=
    arguments=("$@")
    for argument; do
        case $argument in
        --host | --host=*) host=given ;;
        --api-key | --api-key=*) key=given ;;
        esac
    done
    if [[ -z $host ]]; then
        [[ -n $key ]] || die "a server that other machines can reach needs a key: set MEGAFUSER_API_KEY in the" \
            "submitting shell, or give --host yourself (127.0.0.1: from its own node only)"
        arguments+=(--host 0.0.0.0)
    fi
    run_model serve "${arguments[@]}"
}

# Adds the configuration where the arguments name none, and leaves all in $arguments.
with_config() { # [ARGUMENT ...]
    local argument
    arguments=("$@")
    for argument; do
        if [[ $argument == --config || $argument == --config=* ]]; then
            return
        fi
    done
    arguments+=(--config "${MEGAFUSER_CONFIG:-$home/examples/ultrafuser-13b/config.yaml}")
}

set_up() {
    local first tasks=${SLURM_NTASKS_PER_NODE:-1} mounts=$PWD:$PWD
    say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_JOB_NUM_NODES nodes: $SLURM_JOB_NODELIST"

    # A module's or an environment's own scripts may use variables that are not set.
    set +u
    if [[ -n ${MEGAFUSER_MODULES:-} ]]; then
        load_modules
    fi
    if [[ -n ${MEGAFUSER_VENV:-} ]]; then
        [[ -f $MEGAFUSER_VENV/bin/activate ]] || die "MEGAFUSER_VENV=$MEGAFUSER_VENV has no bin/activate; set it to a virtual environment"
        # shellcheck source=/dev/null
        source "$MEGAFUSER_VENV/bin/activate"
    fi
    set -u

    srun_options=(--export=ALL --kill-on-bad-exit=1)
    if [[ -n ${MEGAFUSER_CONTAINER:-} ]]; then
        [[ $home -ef $PWD ]] || mounts+=,$home:$home
        mounts+=${MEGAFUSER_CONTAINER_MOUNTS:+,$MEGAFUSER_CONTAINER_MOUNTS}
        srun_options+=("--container-image=$MEGAFUSER_CONTAINER" "--container-mounts=$mounts" "--container-workdir=$PWD")
    elif ! command -v python >/dev/null; then
        die "no python on PATH: submit from a shell that has one, or set MEGAFUSER_VENV, MEGAFUSER_MODULES or" \
            "MEGAFUSER_CONTAINER"
    fi
    # Some clusters bind a task to one core where nobody says how many it gets.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        srun_options+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
    else
        srun_options+=(--cpu-bind=none)
    fi
    local -a more
    read -r -a more <<<"${MEGAFUSER_SRUN_OPTIONS:-}"
    srun_options+=("${more[@]}")

    # The submitting shell's ranks, if it had any, are not this job's.
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    export MASTER_ADDR=$first MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
    export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-$(((SLURM_CPUS_ON_NODE + tasks - 1) / tasks))}}
    # Tensor parallelism overlaps products and communication only where kernels start in the order of their launch.
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
}

load_modules() {
    local definition
    local -a names
    for definition in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh; do
        if ! type module >/dev/null 2>&1 && [[ -f $definition ]]; then
            # shellcheck source=/dev/null
            source "$definition"
        fi
    done
    type module >/dev/null 2>&1 || die "MEGAFUSER_MODULES is set, but this node has no module command; unset it"
    read -r -a names <<<"$MEGAFUSER_MODULES"
    module load "${names[@]}" || die "module load $MEGAFUSER_MODULES failed; correct MEGAFUSER_MODULES"
}

# Rank, local rank and world size are Slurm's variables, which differ for each task: megafuser reads them itself.
on_all_ranks() { # MODULE [ARGUMENT ...]
    srun "${srun_options[@]}" python -m "$@"
}

requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0} most=${MEGAFUSER_MAX_REQUEUES:-5} state
    state=$(ask_scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p') ||
        state="unknown to scontrol"
    # Who cancels a job does not want it back; and Slurm requeues by itself what it ends for another job.
    if [[ $state != RUNNING ]]; then
        say "stopped early; not requeued, since the job is ${state:-gone}"
        exit 75
    fi
    if ((restarts >= most)); then
        say "error: stopped early, and all $most requeues are used up; submit the same command again to go on, or with a" \
            "larger MEGAFUSER_MAX_REQUEUES"
        exit 75
    fi
    say "stopped early; requeueing, $((restarts + 1)) of at most $most"
    if ! ask_scontrol requeue "$SLURM_JOB_ID"; then
        say "error: the job cannot be requeued; submit the same command again to go on"
        exit 75
    fi
    sleep 600 # Slurm ends this script before
    exit 75
}
