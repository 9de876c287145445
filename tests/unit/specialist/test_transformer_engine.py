"""Specialists of Transformer Engine's layers, without a GPU: `transformer_engine_models.py` in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.transformer_engine_stand_in import PACKAGES, VERSION

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(__file__).with_name("transformer_engine_models.py")


@pytest.mark.skipif(
    not (PACKAGES / f"transformer_engine-{VERSION}.dist-info").exists(),
    reason=f"Transformer Engine {VERSION} is not in {PACKAGES}; tools/venv.sh test puts it there",
)
def test_models_of_every_family_under_every_recipe() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.transformer_engine_stand_in", "-q", "--no-header"]
    done = subprocess.run(
        [*command, "--tb=short", "-W", "ignore", str(MODELS)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"\d+ passed in .*", last), f"skipped or left out: {last}"


def test_no_other_test_sees_it() -> None:
    """megatron-core looks for it at import, and fails at one without its compiled part."""
    assert str(PACKAGES) not in sys.path
