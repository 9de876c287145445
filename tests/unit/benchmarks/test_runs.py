"""Each benchmark measures something at a tiny size, in a process as users start it; how fast it is, nobody looks at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TINY = {
    "checkpoint_stall": "--hidden 64 --layers 1 --turns 1 --threads 1",
    "convert": "--layers 2 --shallow 1 --repeats 1",
    "decode": "--layers 1 --hidden 64 --vocabulary 512 --prompt 64 --tokens 16 --turns 1",
    "decontaminate": "--mb 1 --turns 1 --workers 1",
    "fusion_step": "--hidden 64 --layers 1 --vocabulary 512 --samples 3 --turns 1 --steps 1 --threads 1 --claim 0.1",
    "mixture_loss": "--turns 1 --threads 1",
    "scaling": "--turns 1 --steps 1 --threads 1",
    "serve": "--hidden 64 --layers 1 --clients 1 2 --requests 1 --words 4 --tokens 2",
    "step_overheads": "--hidden 64 --layers 1 --vocabulary 512 --samples 3 --turns 1",
    "tokenization": "--mb 1 --turns 1",
}
# Two have their sizes written down, which take minutes.
SMALLER = {
    "mixture_loss": "it.CASES = [it.Case(8, 64, hidden=16), it.Case(8, 64, hidden=16, stage='warmup')]",
    "scaling": "it.BASE = it.dataclasses.replace(it.BASE, hidden=64, layers=1, vocabulary=512, samples=3); "
    "it.AXES = {'depth': ('layers', (1, 2)), 'samples': ('samples', (3, 6))}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_at_a_tiny_size(name: str, tmp_path: Path) -> None:
    started = [str(ROOT / "benchmarks" / f"{name}.py")]
    if name in SMALLER:
        started = ["-c", f"import {name} as it; {SMALLER[name]}; it.main()"]
    command = [sys.executable, "-W", "ignore", *started, *TINY[name].split()]
    writes = name != "convert"
    if writes:
        command += ["--json", str(tmp_path / "found.json")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/benchmarks", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip()
    if writes:
        assert json.loads((tmp_path / "found.json").read_text("utf-8"))
