#!/usr/bin/env bash
# Builds data/{text,code,math}.{train,valid}.jsonl, where config.yaml looks for them. Options are those of the tool:
#   examples/ultrafuser-13b/build_data.sh --benchmarks alpaca_eval.json sat-math.jsonl
#   examples/ultrafuser-13b/build_data.sh --local /mirror/datasets --out elsewhere
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" "$here/../../tools/build_data.py" --recipe "$here/data.yaml" --out data "$@"
