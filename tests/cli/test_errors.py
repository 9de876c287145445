"""Bad input on the command line: exit code 2, one line, no traceback, nothing written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megafuser import __version__
from megafuser.cli.main import main
from megafuser.config.load import load_config, to_yaml

CONFIG = """\
run_dir: run
specialists:
  - {name: text, checkpoint: checkpoints/text, template: ultralm}
  - {name: code, checkpoint: checkpoints/code, template: codellama}
data:
  domains:
    text: {train: [t.jsonl], valid: [v.jsonl]}
"""
REPORT = ["report", "--config", "config.yaml", "--out", "out", "--checkpoint"]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def finished_step(directory: Path, stage: str, step: int) -> Path:
    path = directory / "run" / stage / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    (path.parent / "latest").write_text(path.name)
    return path


def contents(directory: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a command"),
        (["warmpu"], "invalid choice: 'warmpu'"),
        (["warmup"], "arguments are required: --config"),
        (["warmup", "--config"], "expected one argument"),
        (["warmup", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (
            ["warmup", "--config", "config.yaml", "--confg"],
            "unknown option --confg; the nearest valid one is '--config'",
        ),
        (["warmup", "--config", "config.yaml", "foo"], "override 'foo'"),
        (["warmup", "--config", "config.yaml", "warmup.step=3"], "the nearest valid one is 'warmup.steps'"),
        (["joint", "joint.steps=-1", "--config", "config.yaml"], "joint.steps: must be at least 1"),
        (["joint", "joint.steps=2", "--config", "config.yaml", "joint.lr=x"], "joint.lr: must be a number"),
        ([*REPORT, "run"], "no checkpoint at run"),
        ([*REPORT, "run", "--tensor", "0"], "--tensor: must be a whole number of at least 1"),
        ([*REPORT, "run", "--max-samples", "all"], "--max-samples: must be a whole number of at least 1"),
    ],
)
def test_one_line_and_exit_code_2(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    before = contents(directory)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("megafuser: error: ")
    assert output.err.count("\n") == 1
    assert says in output.err
    assert contents(directory) == before


def test_an_existing_out_is_refused(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_step(directory, "warmup", 400)
    (directory / "out").mkdir()
    assert main([*REPORT, "run"]) == 2
    assert "--out out exists" in capsys.readouterr().err


def test_newlines_in_a_message_are_folded(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warmup", "--config", "no\n  where.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no where.yaml" in error


@pytest.mark.parametrize(
    ("variables", "waits", "prints"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, False, "megafuser: error: nowhere"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, False, "megafuser: error: nowhere"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, True, "megafuser: error: rank 1: nowhere"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, False, "megafuser: error: nowhere"),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"},
            True,
            "megafuser: error: rank 1: nowhere",
        ),
    ],
)
def test_the_first_rank_speaks_first(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    waits: bool,
    prints: str,
) -> None:
    """The others wait, which the launcher ends when rank 0 leaves; whom nobody ends has a mistake of its own."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["warmup", "--config", "nowhere.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(prints) and error.count("\n") == 1
    assert bool(waited) == waits


def test_interrupted(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("megafuser.config.load.load_config", interrupt)
    assert main(["warmup", "--config", "config.yaml"]) == 130
    assert capsys.readouterr().err == "megafuser: interrupted\n"


@pytest.mark.parametrize(
    ("name", "says"), [("out.json", "out.json cannot be written"), (None, "the disk takes no more")]
)
def test_a_full_disk(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str | None, says: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), name)

    monkeypatch.setattr("megafuser.config.load.load_config", fail)
    assert main(["warmup", "--config", "config.yaml"]) == 75
    assert capsys.readouterr().err == (
        f"megafuser: error: {says} (Disk quota exceeded); make room and run the same command again\n"
    )


def test_a_bug_keeps_its_traceback(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("megafuser.config.load.load_config", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["warmup", "--config", "config.yaml"])


@pytest.mark.parametrize("arguments", [["--help"], ["warmup", "--help"], ["joint", "--help"], ["report", "--help"]])
def test_help_says_what_is_written_and_gives_an_example(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "Exit codes: 0" in text
    if len(arguments) > 1:
        assert f"Example:\n  megafuser {arguments[0]} " in text
        assert "Writes " in text


def run_python(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def test_parsing_and_a_bad_configuration_import_no_torch(directory: Path) -> None:
    done = run_python(
        "import sys; from megafuser.cli.main import main\n"
        "assert main(['--version']) == 0\n"
        "assert 'pydantic' not in sys.modules, 'help should be instant'\n"
        "assert main(['warmup', '--config', 'config.yaml', 'warmup.steps=-1']) == 2\n"
        "print([name for name in ('torch', 'transformers', 'megatron') if name in sys.modules])",
        directory,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"megafuser {__version__}", "[]"]
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("stage", "step"), [("warmup", 400), ("joint", 5000)])
def test_a_finished_stage_says_so_without_importing_torch(directory: Path, stage: str, step: int) -> None:
    checkpoint = finished_step(directory, stage, step)
    (directory / "run/config.yaml").write_text(to_yaml(load_config(directory / "config.yaml")))
    done = run_python(
        "import sys; from megafuser.cli.main import main\n"
        f"assert main([{stage!r}, '--config', 'config.yaml']) == 0\n"
        "assert 'torch' not in sys.modules",
        directory,
    )
    assert done.returncode == 0, done.stderr
    assert f" is finished: {checkpoint.relative_to(directory)}\n" in done.stdout


def test_the_module_runs_as_a_program(directory: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "megafuser", "warmup", "--config", "nowhere.yaml"]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "megafuser: error: nowhere.yaml: no such file; give the run's configuration\n"
