#!/usr/bin/env bash
# The whole path on a CPU: data → three specialists → conversion → warm-up → joint → reports → table.
# Needs Python 3.11+, bash and a package registry. Run it again after any interruption: what is done is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=examples/quickstart
out=$here/out
domains=(text code math)

# Processes of a killed run may still be at work here; they hold this lock as long as they live.
mkdir -p "$out"
if command -v flock >/dev/null; then
    exec 8>"$out/.lock"
    flock --nonblock 8 || { echo "Waiting for an earlier run to end" && flock 8; }
fi
find "$out" -maxdepth 2 -name '.*.tmp-*' -exec rm -rf {} +

bash tools/venv.sh
PATH="$PWD/.venv/bin:$PATH"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# fresh OUTPUT INPUT…: OUTPUT is there and no INPUT is newer.
fresh() {
    local output=$1 input
    shift
    [[ -e $output ]] || return 1
    for input in "$@"; do
        [[ ! $input -nt $output ]] || return 1
    done
}

# missing DIRECTORY: one of its specialists is not there.
missing() {
    local domain
    for domain in "${domains[@]}"; do
        [[ -e $1/$domain ]] || return 0
    done
    return 1
}

if [[ ! -e $out/data ]]; then
    run python -m examples.quickstart.make_data --out $out/data
fi

for domain in "${domains[@]}"; do
    fresh "$out/specialists/$domain" "$out/data/tokenizer.json" || rm -rf "${out:?}/specialists/$domain"
done
if missing $out/specialists; then
    run python -m examples.quickstart.train_specialists --data $out/data --out $out/specialists
fi

for domain in "${domains[@]}"; do
    if ! fresh "$out/checkpoints/$domain" "$out/specialists/$domain"; then
        # A run of other specialists is of no use any more.
        rm -rf "${out:?}/run"
        run python tools/convert_hf_to_mcore.py --hf "$out/specialists/$domain" --out "$out/checkpoints/$domain" \
            --verify logits --overwrite
    fi
done

run python -m megafuser warmup --config $here/config.yaml
if ! fresh $out/report-warmup/report.json $out/run/warmup/latest; then
    run python -m megafuser report --checkpoint $out/run/warmup --config $here/config.yaml \
        --out $out/report-warmup --overwrite
fi
run python -m megafuser joint --config $here/config.yaml
if ! fresh $out/report/report.json $out/run/joint/latest; then
    run python -m megafuser report --checkpoint $out/run/joint --config $here/config.yaml \
        --out $out/report --overwrite
fi

# The baseline: each specialist trained on, on its own domain, for as many tokens as the two stages went through.
for domain in "${domains[@]}"; do
    fresh "$out/trained-on/$domain" $out/run/joint/latest || rm -rf "${out:?}/trained-on/$domain"
done
if missing $out/trained-on; then
    run python -m examples.quickstart.train_specialists --data $out/data --continue-from $out/specialists \
        --tokens-from $out/run/metrics.jsonl --out $out/trained-on
fi
if ! fresh $out/trained-on.json $out/trained-on/{text,code,math}; then
    run python -m examples.quickstart.evaluate_specialist --data $out/data --specialists $out/trained-on \
        --out $out/trained-on.json
fi

run python -m examples.quickstart.table --out $out
printf '\nTable: %s\nReport, with plots and texts coloured by the gate: %s\n' "$out/table.md" "$PWD/$out/report/report.html"
