#!/usr/bin/env bash
# Checks everything: lint, format, types, layers, dead code, spelling, shell scripts, then the tests. Works from any
# directory.
#
#   bash tests/run.sh              all checks, and the tests without the slow ones
#   bash tests/run.sh --all        all checks, and all tests
#   bash tests/run.sh --coverage   also the share of megafuser's lines that tests ran, which fails below 90 %
#   bash tests/run.sh ARGUMENTS    only pytest, with these arguments (quick, while developing)
#
# The environment is .venv at the repository root, made by tools/venv.sh where it is absent. All checks run even
# where one fails; the exit code is 0 where all passed. pytest's counts are the last line.
#
# The tests run in three lanes side by side, since each of them waits a good part of its time: tests/unit, tests/cli
# (with parts of tests/unit, which evens them out), and all others, whose ranks wait for each other; tests/slurm is
# at their end, where no other ranks take its jobs' time. Beside them are the other checks, most of whose time is mypy's.
# These and the first two lanes print when the last is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/venv.sh test
PATH="$PWD/.venv/bin:$PATH"
# Several processes share few cores in the tests; one thread each also makes sums the same everywhere.
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg

if (($# > 0)) && [[ $1 != --all && $1 != --coverage ]]; then
    exec python -m pytest "$@"
fi
selection=()
run=(python)
coverage=
while (($# > 0)); do
    case $1 in
    --all) selection=(-m "") ;;
    --coverage)
        coverage=yes
        run=(python -m coverage run)
        ;;
    *) break ;;
    esac
    shift
done

failed=()
check() {
    echo "== $*"
    "$@" || failed+=("$1 ${2:-}")
}

all_but_tests() {
    local scripts
    mapfile -d '' scripts < <(git ls-files -z --cached --others --exclude-standard -- '*.sh' .ci/run)
    check ruff check .
    check ruff format --check .
    check mypy megafuser tools examples docs/generator
    check lint-imports --no-logo
    check vulture
    check codespell
    check shellcheck "${scripts[@]}"
    ((${#failed[@]} == 0)) || printf 'failed: %s\n' "${failed[@]}"
    ((${#failed[@]} == 0))
}

if (($# > 0)); then
    all_but_tests || true
    echo "== pytest"
    "${run[@]}" -m pytest -q "${selection[@]}" "$@" || failed+=(pytest)
    if [[ -n $coverage ]]; then
        python -m coverage combine --quiet
        check python -m coverage report
    fi
    ((${#failed[@]} == 0))
    exit
fi

# two at once would overwrite each other's cache
tests=("${run[@]}" -m pytest -q -p no:cacheprovider "${selection[@]}")
mapfile -d '' others < <(
    find tests -name 'test_*.py' -not -path 'tests/unit/*' -not -path 'tests/cli/*' -print0 | sort -z
)
logs=$(mktemp -d)
declare -A lanes=()
trap '((${#lanes[@]} == 0)) || kill "${lanes[@]}"; rm -rf "$logs"' EXIT
echo "== pytest: tests/unit; tests/cli; all others"
all_but_tests >"$logs/checks" 2>&1 &
lanes[checks]=$!
beside_cli=(tests/unit/{specialist,harness,preflight})
"${tests[@]}" tests/unit "${beside_cli[@]/#/--ignore=}" >"$logs/unit" 2>&1 &
lanes["pytest tests/unit"]=$!
"${tests[@]}" tests/cli "${beside_cli[@]}" >"$logs/cli" 2>&1 &
lanes["pytest tests/cli"]=$!
"${tests[@]}" "${others[@]}" 2>&1 | tee "$logs/others" || failed+=("pytest, other tests")
for lane in "${!lanes[@]}"; do
    wait "${lanes[$lane]}" || failed+=("$lane")
done
lanes=()
cat "$logs/unit" "$logs/cli" "$logs/checks"
if [[ -n $coverage ]]; then
    python -m coverage combine --quiet
    check python -m coverage report
fi

((${#failed[@]} == 0)) || printf 'failed: %s\n' "${failed[@]}"
# the sums of lines like "1 failed, 2 passed, 1 warning in 4.56s (0:00:04)"
tail -qn 1 "$logs"/{unit,cli,others} | sed 's/ in [0-9].*//; s/, /\n/g; s/warnings/warning/; s/errors/error/' | awk '
    { sum[$2] += $1 }
    END {
        count = split("failed error passed skipped deselected xfailed xpassed warning", words)
        for (i = 1; i <= count; i++) if (sum[words[i]]) line = line sum[words[i]] " " words[i] ", "
        sub(/, $/, "", line)
        print line " in '"$SECONDS"' s"
    }'
((${#failed[@]} == 0))
