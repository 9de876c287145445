#!/usr/bin/env bash
# A real pretrained model: SmolLM2-135M-Instruct and two fine-tunes of it, fused and evaluated.
#
#   bash examples/smollm2/run.sh [--fast] [--no-trained-on] [--no-harness] [--fine-tuned] [--out DIR] [--into FILE]
#
# Needs Python 3.11+, bash and a package registry. Run it again after any interruption: what is done is skipped.
set -euo pipefail
start=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source examples/shared/arguments.sh
paths_from "$start" "$@"
# the extra `test` brings the harness, HumanEval's problems, and what reads a GGUF file
bash tools/venv.sh test
exec .venv/bin/python -m examples.smollm2.run "${arguments[@]}"
