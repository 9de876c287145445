#!/usr/bin/env bash
# What else could be done with the specialists of a run: each alone, a uniform mixture, weight merges, fine-tuning one.
# All are measured by `megafuser report` on the run's own validation samples, and come out as one table.
#
#   bash examples/baselines/run.sh [--config FILE] [--base DIR] [--out DIR] [key=value ...]
#
# Without --config: the quickstart's run, which must be there (bash examples/quickstart/run.sh). Run it again after any
# interruption: what is done is skipped. The output directory belongs to one configuration, and to the checkpoints that
# it was made from: with others it is refused. Joint training may come later; then only what follows from it is done.
set -euo pipefail
start=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=examples/baselines
config=examples/quickstart/config.yaml
out=$here/out
base=()
overrides=()
absolute() { case $1 in /*) echo "$1" ;; *) echo "$start/$1" ;; esac; }
while (($#)); do
    case $1 in
        --config | --base | --out)
            if (($# < 2)); then
                echo "megafuser: error: $1 needs a value; see the first lines of $here/run.sh" >&2
                exit 2
            fi
            case $1 in
                --config) config=$(absolute "$2") ;;
                --base) # a directory, or a name on the hub
                    base=(--base "$2")
                    [[ ! -d $start/$2 ]] || base=(--base "$start/$2")
                    ;;
                --out) out=$(absolute "$2") ;;
            esac
            shift 2
            ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        *=*) overrides+=("$1") && shift ;;
        *)
            echo "megafuser: error: unknown argument $1; see the first lines of $here/run.sh" >&2
            exit 2
            ;;
    esac
done

bash tools/venv.sh
PATH="$PWD/.venv/bin:$PATH"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# make OUTPUT COMMAND…: runs the command where its output is not there yet.
make() {
    local output=$1
    shift
    [[ -e $output ]] || run "$@"
}

# Name and checkpoint of each specialist, and the checkpoint of each stage; refuses a run that is not there, and an
# output directory that was made from another one.
python $here/baselines.py describe --config "$config" --out "$out" "${base[@]}" "${overrides[@]}"
mapfile -t names <"$out/names.txt"

for name in "${names[@]}"; do
    make "$out/specialists/$name" python tools/convert_mcore_to_hf.py \
        --checkpoint "$(<"$out/sources/$name")" --out "$out/specialists/$name"
done

# A report for each stage of the run: specialists alone, uniform mixture, fused. The first says which specialist is the
# best single one; in a report on a joint checkpoint, the specialists are no longer what they were.
checkpoints=()
for stage in warmup joint; do
    if [[ -e $out/stages/$stage ]]; then
        checkpoint=$(<"$out/stages/$stage")
        checkpoints+=(--checkpoint "$checkpoint")
        make "$out/report-$stage/report.json" python -m megafuser report --checkpoint "$checkpoint" \
            --config "$config" --out "$out/report-$stage" --overwrite "${overrides[@]}"
    fi
done

bash $here/mergekit.sh
for method in linear ties; do
    make "$out/models/$method" $here/.venv/bin/python $here/merge.py --method $method --specialists "$out/specialists" \
        "${base[@]}" --out "$out/models/$method"
done
make "$out/models/finetuned" python -W ignore $here/finetune.py --config "$config" --specialists "$out/specialists" \
    --report "$out/report-warmup/report.json" "${checkpoints[@]}" --out "$out/models/finetuned" "${overrides[@]}"
for model in linear ties finetuned; do
    make "$out/checkpoints/$model" python tools/convert_hf_to_mcore.py --hf "$out/models/$model" \
        --out "$out/checkpoints/$model"
done

# The same report for all of them at once: they take the specialists' places in a fusion whose gate hardly trains, and
# of which only the column of each specialist alone is read.
python $here/baselines.py config --config "$config" --out "$out" "${overrides[@]}"
run python -m megafuser warmup --config "$out/config.yaml"
make "$out/report-baselines/report.json" python -m megafuser report --checkpoint "$out/run" \
    --config "$out/config.yaml" --out "$out/report-baselines" --overwrite

run python $here/table.py --out "$out"
