#!/usr/bin/env bash
# Makes .venv at the repository root, or brings it up to date: `bash tools/venv.sh [EXTRAS]`, e.g. `test` or `test,serve`.
# Prints nothing where there is nothing to do. The next call makes an interrupted installation anew, and goes on with an
# interrupted update.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Transformer Engine's Python layer without its CUDA libraries (9 MB), for tests without a GPU. It stands apart, since
# megatron-core fails to import where it finds it on its path.
te_stand_in=("transformer-engine" "nvdlfw-inspect" "einops")

extras=${1:-}
read -r -a markers <<<"base ${extras//,/ }"
complete() {
    local name marker file
    [[ ! -e .venv/.making && ! -e .venv/.updating ]] || return 1
    for name in "${markers[@]}"; do
        marker=.venv/.installed-$name
        # Other requirements or versions are a reason to install again.
        for file in setup.py constraints.txt tools/venv.sh; do
            [[ -e $marker && ! $file -nt $marker ]] || return 1
        done
    done
}

if complete; then
    exit
fi
# Two at once (tests and quickstart) would break each other's installation.
exec 9<>tools/venv.sh # to write: a lock on a file in the network needs it
if command -v flock >/dev/null; then
    flock 9 || echo "There are no file locks here: let no other call run beside this one" >&2
    if complete; then
        exit
    fi
fi
if [[ -e .venv/.making ]]; then
    echo "Removing a half-made .venv"
    # what says so goes last
    find .venv -mindepth 1 -maxdepth 1 ! -name .making -exec rm -rf {} +
    rm -rf .venv
fi
if [[ ! -x .venv/bin/python ]]; then
    for python in python3.11 python3.12 python3.13 python3.14 python3 ""; do
        if "${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            break
        fi
    done
    if [[ -z $python ]]; then
        echo "megafuser: error: Python 3.11 or newer is needed: install it, with its venv module" >&2
        exit 2
    fi
    echo "Making .venv"
    if [[ ! -e .venv ]]; then
        mkdir .venv
        touch .venv/.making
    fi
    "$python" -m venv .venv
fi
echo "Installing into .venv (a minute or two, once)"
# What was whole, or is somebody else's, is never removed. Where its update fails by itself (no network, say), what is
# there still works; where it is killed, in the middle of a package, the next call has to go on.
unfinished=.venv/.updating
[[ ! -e .venv/.making ]] || unfinished=.venv/.making
was_whole=yes
[[ ! -e $unfinished ]] || was_whole=
touch "$unfinished"
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
install() {
    local code=0
    .venv/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt "$@" || code=$?
    if ((code != 0)); then
        [[ -z $was_whole ]] || rm "$unfinished"
        exit "$code"
    fi
}
# torch comes first, since Transformer Engine is built against it. On Linux PyPI's brings gigabytes of CUDA packages
# along; where PIP_EXTRA_INDEX_URL names PyTorch's index of CPU builds, pip should take VERSION+cpu from there, which
# the pinned VERSION allows and which counts as newer (never tried).
install torch
if [[ ",$extras," == *,gpu,* ]]; then
    # Transformer Engine's extension is compiled while it is installed. pip would do that in an environment of its own,
    # against whichever torch is the newest there; without one, the build finds this torch, and needs its tools here.
    install setuptools wheel packaging ninja
    # Not from pip's cache, which would give what was once built against another torch.
    PATH=$PWD/.venv/bin:$PATH install --no-cache-dir --no-build-isolation --editable ".[gpu]"
fi
install --editable ".${extras:+[$extras]}"
if [[ ",$extras," == *,test,* ]]; then
    rm -rf .venv/te-stand-in
    install --no-deps --target .venv/te-stand-in "${te_stand_in[@]}"
fi
for name in "${markers[@]}"; do
    touch ".venv/.installed-$name"
done
rm "$unfinished"
