#!/usr/bin/env bash
# The paper's findings in miniature: three specialists from scratch, fused, against all that one could do instead.
#
#   bash examples/miniature/run.sh [--fast] [--only-seed N] [--out DIR] [--jobs N] [--into FILE]
#
# Needs Python 3.11+, bash and a package registry. Run it again after any interruption: what is done is skipped.
set -euo pipefail
start=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source examples/shared/arguments.sh
paths_from "$start" "$@"
bash tools/venv.sh
bash examples/baselines/mergekit.sh
exec .venv/bin/python -m examples.miniature.run "${arguments[@]}"
