"""`tools/venv.sh` with a stand-in for pip: what is installed, in which order, and with which options."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.parallel.launch import ROOT


def environment(directory: Path, python: str) -> None:
    """The script, and an environment whose Python is a stand-in."""
    for name in ("setup.py", "constraints.txt", "tools/venv.sh"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    program = directory / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/usr/bin/env bash\n{python}\n")
    program.chmod(0o755)


def installations(directory: Path, extras: str) -> list[str]:
    """The arguments of each call of pip, without the options that all have; a stand-in for Python writes them down."""
    environment(directory, f'echo "$*" >>{directory}/calls')
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


def test_an_update_that_fails_leaves_the_environment(tmp_path: Path) -> None:
    """As one without a network; the next call tries again, and does not remove what cannot be made anew."""
    environment(tmp_path, "exit 7")
    (tmp_path / ".venv" / "mine").touch()
    for _ in range(2):
        assert subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, capture_output=True).returncode == 7
    assert (tmp_path / ".venv" / "mine").exists() and not (tmp_path / ".venv" / ".installed-base").exists()


def test_an_installation_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    environment(tmp_path, "kill -9 $PPID")
    (tmp_path / ".venv" / "mine").touch()
    assert subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, capture_output=True).returncode == -9
    assert (tmp_path / ".venv" / ".making").exists()
    # no Python to go on with: only what was done before that is of interest here
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.11").write_text("#!/usr/bin/env bash\nexit 1\n")
    (tmp_path / "bin" / "python3.11").chmod(0o755)
    path = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, capture_output=True, text=True, env=path)
    assert "Removing a half-made .venv" in done.stdout and not (tmp_path / ".venv" / "mine").exists()
