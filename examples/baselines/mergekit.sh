#!/usr/bin/env bash
# mergekit beside our own packages, in examples/baselines/.venv, which sees those of the repository's .venv: what it
# needs besides does not touch ours. Prints nothing where there is nothing to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=examples/baselines/.venv
# a .venv made anew may lack what mergekit found in the one before
if [[ ! -e $venv/.installed || .venv/pyvenv.cfg -nt $venv/.installed ]]; then
    echo "Installing mergekit into $venv"
    rm -rf $venv
    .venv/bin/python -m venv $venv
    .venv/bin/python -c 'import sys; print(*(p for p in sys.path if p.endswith("site-packages")), sep="\n")' \
        >"$(echo $venv/lib/python3*/site-packages)/of-the-repository.pth"
    $venv/bin/python -m pip install -qq --disable-pip-version-check mergekit==0.1.5
    touch $venv/.installed
fi
