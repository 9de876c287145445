#!/usr/bin/env bash
# Compares a checkpoint with its specialists. The arguments are those of `megafuser report`:
#
#   sbatch slurm/report.sh --checkpoint DIR --out DIR [options] [key=value ...]
#
# Every #SBATCH line is a default: options before the script's name replace it. README.md beside this file says more.
#SBATCH --job-name=megafuser-report
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
set -euo pipefail

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "megafuser: error: this is a job script; submit it: sbatch slurm/report.sh" >&2
    exit 2
fi
# Slurm runs a copy of this file, so BASH_SOURCE does not lead to the repository.
home=${MEGAFUSER_HOME:-}
if [[ -z $home ]]; then
    home=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/slurm/report\.sh\( .*\)\?$|\1|p' | head -n 1) || home=
fi
home=${home:-$SLURM_SUBMIT_DIR}
if [[ ! -f $home/slurm/launch.sh ]]; then
    echo "megafuser: error: no slurm/launch.sh in $home; set MEGAFUSER_HOME to the repository" >&2
    exit 2
fi
# shellcheck source=slurm/launch.sh
source "$home/slurm/launch.sh"

run_model report "$@"
