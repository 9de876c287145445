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
    program.parent.mkdir(parents=True, exist_ok=True)
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


@pytest.mark.parametrize("signal", ["INT", "KILL"])
def test_an_update_that_was_killed_is_gone_on_with(signal: str, tmp_path: Path) -> None:
    """Whatever made the environment, it may hold more than what is installed here."""
    environment(tmp_path, "exit 0")
    (tmp_path / ".venv" / "mine").touch()
    subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, check=True, capture_output=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f"#!/usr/bin/env bash\nkill -{signal} $PPID; exit 1\n")
    assert subprocess.run(["bash", "tools/venv.sh", "serve"], cwd=tmp_path, capture_output=True).returncode != 0
    python.write_text(f'#!/usr/bin/env bash\necho "$*" >>{tmp_path}/calls\n')
    subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "calls").read_text().splitlines()[-1].endswith("--editable ."), "it may be half of a package"
    assert (tmp_path / ".venv" / "mine").exists() and (tmp_path / ".venv" / ".installed-base").exists()
    (tmp_path / "calls").unlink()
    subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, check=True)
    assert not (tmp_path / "calls").exists(), "there is nothing to do"


def pythons(directory: Path, **programs: str) -> dict[str, str]:
    """An environment of a shell in which these are all the Pythons that there are, with what each does."""
    bin_directory = directory / "bin"
    bin_directory.mkdir()
    for name in ("bash", "dirname", "mkdir", "touch", "rm", "flock", "chmod", "cat", "find"):
        found = shutil.which(name)
        assert found is not None
        (bin_directory / name).symlink_to(found)
    for name, does in programs.items():
        (bin_directory / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (bin_directory / name).chmod(0o755)
    return {"PATH": str(bin_directory)}


def making(pip: str) -> str:
    """A Python that is new enough, and makes an environment whose pip does this."""
    program = f"#!/usr/bin/env bash\n{pip}\n"
    return (
        f"if [[ $2 == venv ]]; then mkdir -p .venv/bin; cat >.venv/bin/python <<'END'\n{program}END\n"
        "chmod 755 .venv/bin/python; fi"
    )


def test_an_installation_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    environment(tmp_path, "")
    shutil.rmtree(tmp_path / ".venv")
    shell = pythons(tmp_path, **{"python3.11": making("kill -9 $PPID")})
    assert subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, capture_output=True, env=shell).returncode == -9
    (tmp_path / ".venv" / "half").touch()
    (tmp_path / "bin" / "python3.11").write_text(f"#!/usr/bin/env bash\n{making('exit 0')}\n")
    done = subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, capture_output=True, text=True, env=shell)
    assert done.returncode == 0 and "Removing a half-made .venv" in done.stdout
    assert not (tmp_path / ".venv" / "half").exists() and (tmp_path / ".venv" / ".installed-base").exists()


def test_any_python_that_is_new_enough_is_taken(tmp_path: Path) -> None:
    environment(tmp_path, "")
    shutil.rmtree(tmp_path / ".venv")
    shell = pythons(tmp_path, **{"python3": "exit 1", "python3.13": making("exit 0")})
    subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, check=True, env=shell)
    assert (tmp_path / ".venv" / ".installed-base").exists()


def test_no_python_that_is_new_enough(tmp_path: Path) -> None:
    environment(tmp_path, "")
    shutil.rmtree(tmp_path / ".venv")
    shell = pythons(tmp_path, python3="exit 1")
    done = subprocess.run(["bash", "tools/venv.sh"], cwd=tmp_path, capture_output=True, text=True, env=shell)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("megafuser: error: Python 3.11 or newer is needed")
