"""A trial on two ranks: both stages, the peak memory of both, and one directory that both use."""

import re
from pathlib import Path

import pytest

from megafuser.watching.json_lines import read_lines
from tests.fused_case import make_case, write_config
from tests.parallel.launch import torchrun


@pytest.mark.parallel
@pytest.mark.parametrize("overrides", [("parallel.pipeline=2",), ("optimizer.distributed=true",)], ids=["pp2", "dp2"])
def test_a_trial_of_joint_training_without_a_warmup(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    values = make_case(tmp_path, train=6, valid=2)
    values |= {stage: {"steps": 40, "samples_per_domain": 2, "lr": 1e-3} for stage in ("warmup", "joint")}
    config = write_config(tmp_path / "config.yaml", values)
    run = tmp_path / "run"
    words = ["joint", "--config", str(config), "--trial", "4", f"run_dir={run}", *overrides]
    (run / "trial").mkdir(parents=True)
    (run / "trial" / "of the trial before").touch()
    done = torchrun(2, "megafuser", words, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trial: 4 steps of joint, starting from the converted specialists") == 1
    assert sorted(path.name for path in run.iterdir()) == ["data", "trial"]
    assert not (run / "trial" / "of the trial before").exists()
    lines = read_lines(run / "trial" / "metrics.jsonl", ("stage", "split"))
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    peaks = re.findall(r"peak memory of the process: ([\d.]+) GiB on the fullest rank(.*); planned", done.stdout)
    pipeline = "parallel.pipeline=2" in overrides
    assert [place for _, place in peaks] == ([" of pipeline rank 0", " of pipeline rank 1"] if pipeline else [""])
    assert "stage: 40 steps, " in done.stdout
