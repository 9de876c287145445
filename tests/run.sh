#!/usr/bin/env bash
# Checks everything: lint, format, types, spelling, shell scripts, then the tests. Works from any directory.
#
#   bash tests/run.sh              all checks, and the tests without the slow ones
#   bash tests/run.sh --all        all checks, and all tests
#   bash tests/run.sh ARGUMENTS    only pytest, with these arguments (quick, while developing)
#
# The environment is .venv at the repository root, made by tools/venv.sh where it is absent. All checks run even
# where one fails; the exit code is 0 where all passed. pytest's counts are the last line.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/venv.sh test
PATH="$PWD/.venv/bin:$PATH"
# Several processes share few cores in the tests; one thread each also makes sums the same everywhere.
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg

if (($# > 0)) && [[ $1 != --all ]]; then
    exec python -m pytest "$@"
fi
selection=()
if (($# > 0)); then
    selection=(-m "")
    shift
fi

failed=()
check() {
    echo "== $*"
    "$@" || failed+=("$1 ${2:-}")
}

mapfile -d '' scripts < <(git ls-files -z --cached --others --exclude-standard -- '*.sh' .ci/run)
check ruff check .
check ruff format --check .
check mypy megafuser tools
check codespell
check shellcheck "${scripts[@]}"
if ((${#failed[@]} > 0)); then
    printf 'failed: %s\n' "${failed[@]}"
fi
echo "== pytest"
python -m pytest -q "${selection[@]}" "$@" || failed+=(pytest)
((${#failed[@]} == 0))
