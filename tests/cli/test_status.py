"""`megafuser status` as users type it: fast, since torch is never imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megafuser.cli.main import main
from tests.parallel.launch import ROOT
from tests.unit.watching.test_status import event, line, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [line(step) for step in range(1, 101)]
    happened = [event("started", 0, step=0), event("warning", 5, message="a warning"), event("finished", 300)]
    return make_run(tmp_path / "run", lines, happened, written=299)


def test_it_prints_the_status_without_importing_torch(run: Path) -> None:
    code = (
        "import sys; from megafuser.cli.main import main\n"
        f"code = main(['status', {str(run)!r}])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{run}: joint, step 100 of 100 (100.0%), finished\n")
    assert "  warnings     1:\n" in done.stdout and "joint: a warning\n" in done.stdout


def test_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["stage"], found["step"], found["steps"]) == ("finished", "joint", 100, 100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent"], "no run directory at absent: no such directory; give a configuration's run_dir"),
        ([], "the following arguments are required: RUN_DIR; see megafuser status --help"),
        (["a", "b"], "unknown argument 'b'; see megafuser status --help"),
        (["a", "--jsn"], "unknown option --jsn; the nearest valid one is '--json'; see megafuser status --help"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *arguments]) == 2
    assert capsys.readouterr().err == f"megafuser: error: {said}\n"


def test_a_directory_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    missing = "it has neither config.yaml nor metrics.jsonl; give a configuration's run_dir"
    said = f"{tmp_path} is not a run directory: {missing}"
    assert capsys.readouterr().err == f"megafuser: error: {said}\n"


def test_an_impossible_path_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "x" * 300]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"megafuser: error: {'x' * 300}: File name too long; give another path, or change its permissions"
