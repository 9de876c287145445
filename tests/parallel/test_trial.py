"""Trials on two ranks: both stages, the peak memory of both, and one directory that both use."""

import re
from pathlib import Path

import pytest

from megafuser.watching.json_lines import read_lines
from tests.fused_case import make_case, write_config
from tests.parallel.launch import run_commands

LAYOUTS = {"pp2": "parallel.pipeline=2", "dp2": "optimizer.distributed=true"}
PLACES = {"pp2": [" of pipeline rank 0", " of pipeline rank 1"], "dp2": [""]}


@pytest.mark.parallel
def test_trials_of_joint_training_without_a_warmup(tmp_path: Path) -> None:
    values = make_case(tmp_path, train=6, valid=2)
    values |= {stage: {"steps": 40, "samples_per_domain": 2, "lr": 1e-3} for stage in ("warmup", "joint")}
    config = write_config(tmp_path / "config.yaml", values)
    commands = []
    for layout, override in LAYOUTS.items():
        run = tmp_path / layout
        (run / "trial").mkdir(parents=True)
        (run / "trial" / "of the trial before").touch()
        (run / "trial" / "config.yaml").write_text(f"run_dir: {run}/trial\n")
        commands.append(["joint", "--config", str(config), "--trial", "4", f"run_dir={run}", override])
    first, second = run_commands(2, commands, timeout=600)
    assert "trial:" not in second.out
    _, *parts = first.out.split("trial: 4 steps of joint, starting from the converted specialists")
    for layout, said in zip(LAYOUTS, parts, strict=True):
        run = tmp_path / layout
        assert sorted(path.name for path in run.iterdir()) == ["data", "trial"]
        assert not (run / "trial" / "of the trial before").exists()
        lines = read_lines(run / "trial" / "metrics.jsonl", ("stage", "split"))
        assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
        peaks = re.findall(r"peak memory of the process: ([\d.]+) GiB on the fullest rank(.*); planned", said)
        assert [place for _, place in peaks] == PLACES[layout]
        assert "stage: 40 steps, " in said
