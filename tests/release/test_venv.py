"""`tools/venv.sh` with a stand-in for pip: what is installed, in which order, and with which options."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.parallel.launch import ROOT


def installations(directory: Path, extras: str) -> list[str]:
    """The arguments of each call of pip, without the options that all have; a stand-in for Python writes them down."""
    for name in ("setup.py", "constraints.txt", "tools/venv.sh"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    python = directory / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\necho "$*" >>{directory}/calls\n')
    python.chmod(0o755)
    subprocess.run(["bash", "tools/venv.sh", extras], cwd=directory, check=True, capture_output=True)
    given = "-m pip install -qq --disable-pip-version-check --constraint constraints.txt "
    calls = (directory / "calls").read_text().splitlines()
    assert all(call.startswith(given) for call in calls)
    return [call.removeprefix(given) for call in calls]


def test_transformer_engine_is_built_against_the_torch_that_is_there(tmp_path: Path) -> None:
    assert installations(tmp_path, "gpu,serve") == [
        "torch",
        "setuptools wheel packaging ninja",
        "--no-cache-dir --no-build-isolation --editable .[gpu]",
        "--editable .[gpu,serve]",
    ]


@pytest.mark.parametrize(("extras", "package"), [("", "."), ("eval", ".[eval]")])
def test_without_gpus_nothing_is_built_so(extras: str, package: str, tmp_path: Path) -> None:
    assert installations(tmp_path, extras) == ["torch", f"--editable {package}"]
