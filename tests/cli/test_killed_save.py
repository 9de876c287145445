"""A stage that is killed at a given moment of a save, and started again: it goes on from a complete checkpoint."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from megafuser.checkpoint.manifest import read_manifest, verify_files
from megafuser.config.run_directory import RunDirectory
from tests.cli.stopping import WITHIN, read
from tests.cli.test_killed_stage import INTERVAL, STEPS, finish
from tests.parallel.launch import ROOT

KILLED = 4 * INTERVAL
# Ends the process when the save of step KILLED is there; `keep` is 3, so the first checkpoint is removed then.
PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    from megafuser.checkpoint import background, snapshot
    from megafuser.runtime import atomic
    from megafuser.cli.main import main
    from megafuser.training import checkpoint_saver

    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    moment, target, *arguments = sys.argv[1:]
    if moment == "half of a file":
        write_one, written = snapshot._write_one, []
        def write(file, item, data, name):
            if target in str(file.path):
                written.append(name)
            if len(written) == 3:
                kill()
            return write_one(file, item, data, name)
        snapshot._write_one = write
    elif moment == "all written, not renamed":
        replace = atomic._replace
        atomic._replace = lambda temporary, path: kill() if path.name == target else replace(temporary, path)
    elif moment == "renamed, latest not moved":
        write_latest = checkpoint_saver.write_latest
        checkpoint_saver.write_latest = lambda run, stage, path: (
            kill() if path.name == target else write_latest(run, stage, path)
        )
    elif moment == "an old one half removed":
        rmtree = atomic.shutil.rmtree
        def remove(path, **options):
            if not Path(path).name.startswith(".step_"):
                return rmtree(path, **options)
            next(Path(path).rglob("*.distcp")).unlink()
            kill()
        atomic.shutil.rmtree = remove
    sys.exit(main(arguments))
"""
# moment → the checkpoint that is complete then
MOMENTS = {
    "half of a file": KILLED - INTERVAL,
    "all written, not renamed": KILLED - INTERVAL,
    "renamed, latest not moved": KILLED,
    "an old one half removed": KILLED,
}
SLOW = ("all written, not renamed", "an old one half removed")


@pytest.mark.parametrize("moment", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in MOMENTS])
def test_killed_while_saving_and_run_again_equals_uninterrupted(
    saving_config: Path,
    saving_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    run = RunDirectory(tmp_path / "run")
    target = run.step_directory("warmup", KILLED)
    arguments = ["warmup", "--config", str(saving_config), f"run_dir={run.path}"]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), moment, target.name, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert target.exists() == (MOMENTS[moment] == KILLED)
    hidden = [path for path in run.stage("warmup").iterdir() if path.name.startswith(".")]
    assert len(hidden) == (moment != "renamed, latest not moved"), "the moment was missed"
    capsys.readouterr()
    finish(saving_config, run.path)
    told = capsys.readouterr().err
    assert f"resuming from {run.step_directory('warmup', MOMENTS[moment])}\n" in told
    assert "damaged" not in told
    assert read(run.path) == read(saving_run)
    kept = [f"step_{step:06d}" for step in (STEPS - 2 * INTERVAL, STEPS - INTERVAL, STEPS)]
    assert sorted(path.name for path in run.stage("warmup").iterdir()) == ["latest", *kept]
    for name in kept:
        checkpoint = run.stage("warmup") / name
        assert verify_files(checkpoint, read_manifest(checkpoint)) == []
