"""Both stages as jobs: chained, ended and started again in every way that a cluster knows."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import SMALL, Cluster, errors_of, log_of, script
from tests.slurm.conftest import INTERVAL, JOINT_STEPS, WARMUP_STEPS, Case

pytestmark = pytest.mark.slow

NUMBERS = ("stage", "split", "step", "grad_norm", "lr", "samples", "tokens", "response_tokens")
# Behind a checkpoint, and before the next.
DISTURBED_AT = INTERVAL + 3


def lines(run: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's lines without what depends on the time."""
    path = run / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    found = [json.loads(line) for line in whole]
    return [
        {key: value for key, value in line.items() if key in NUMBERS or key.startswith(("loss", "gate/"))}
        for line in found
        if line["stage"] == stage
    ]


def start_joint(cluster: Cluster, case: Case, run: Path, *options: str, overrides: Sequence[str] = ()) -> int:
    """Submits the second stage of a run and waits until it has done some steps."""
    number = cluster.submit(
        case.directory, *SMALL, *options, script("joint.sh"), "--config", case.config, f"run_dir={run}", *overrides
    )

    def under_way() -> bool:
        state = cluster.job(number).state
        assert state in ("PENDING", "RUNNING"), log_of(case.directory, number)
        return any(line["step"] >= DISTURBED_AT for line in lines(run, "joint"))

    cluster.until(under_way, f"step {DISTURBED_AT}")
    return number


def assert_as_undisturbed(cluster: Cluster, case: Case, run: Path, number: int) -> None:
    """The job came to its end, was started twice, and has every step once, with the same numbers to the last bit."""
    job = cluster.wait(number)
    log = log_of(case.directory, number)
    assert (job.state, job.code, job.restarts) == ("COMPLETED", 0, 1), log
    assert "resuming from" in log
    assert [line["step"] for line in lines(run, "joint") if line["split"] == "train"] == [*range(1, JOINT_STEPS + 1)]
    assert lines(run, "joint") == lines(case.run, "joint")
    assert (run / "joint" / "latest").read_text() == f"step_{JOINT_STEPS:06d}\n"


def test_joint_waits_for_the_warm_up_and_both_finish(cluster: Cluster, case: Case) -> None:
    assert (case.run / "warmup" / "latest").read_text() == f"step_{WARMUP_STEPS:06d}\n"
    assert (case.run / "joint" / "latest").read_text() == f"step_{JOINT_STEPS:06d}\n"
    for number, stage in ((case.warmup, "warmup"), (case.joint, "joint")):
        log = log_of(case.directory, number)
        assert "megafuser: preflight: 4 ranks are ready" in log
        assert "TP 2 x PP 1 x DP 2 on cpu" in log
        assert f"{stage} is finished" in log


def test_a_finished_stage_says_so(cluster: Cluster, case: Case) -> None:
    number = cluster.submit(case.directory, *SMALL, script("warmup.sh"), "--config", case.config)
    assert cluster.wait(number).code == 0
    log = log_of(case.directory, number)
    assert log.count(f"warmup is finished: {case.run}/warmup/step_{WARMUP_STEPS:06d}") == 1
    assert "ranks are ready" not in log


def test_a_report_of_the_run(cluster: Cluster, case: Case, tmp_path: Path) -> None:
    """By the checkpoint's own configuration."""
    number = cluster.submit(
        case.directory, *SMALL, script("report.sh"), "--checkpoint", case.run, "--out", tmp_path / "report"
    )
    assert cluster.wait(number).code == 0, log_of(case.directory, number)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["overall"]["cross_entropy"]["fused"] > 0


def test_preempted(cluster: Cluster, case: Case, started: Path) -> None:
    """A more important job takes its nodes; afterwards it goes on."""
    number = start_joint(cluster, case, started, "--partition=low")
    other = cluster.submit(case.directory, "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    assert cluster.wait(other).state == "COMPLETED"
    assert_as_undisturbed(cluster, case, started, number)


def test_put_back_by_hand(cluster: Cluster, case: Case, started: Path) -> None:
    number = start_joint(cluster, case, started)
    cluster.run("scontrol", "requeue", str(number))
    assert_as_undisturbed(cluster, case, started, number)


def test_a_node_dies(cluster: Cluster, case: Case, started: Path) -> None:
    """Slurm notices after a while, and starts the job again when the node is back."""
    number = start_joint(cluster, case, started)
    cluster.kill_node("node2")
    cluster.until(lambda: cluster.job(number).state != "RUNNING", "Slurm to notice")
    # Slurm tells the lost node again every minute to end the job, and would end its next start there
    cluster.run("scontrol", "hold", str(number))
    cluster.start_node("node2")
    time.sleep(100)
    cluster.run("scontrol", "release", str(number))
    assert_as_undisturbed(cluster, case, started, number)


def test_told_to_end_before_the_time_limit(cluster: Cluster, case: Case, started: Path) -> None:
    """The script's own `--signal` line: the limit comes near when some steps are done, however long the start took."""
    number = start_joint(cluster, case, started, overrides=("joint.steps=100000",))
    cluster.limit(number, minutes=3)
    cluster.until(lambda: cluster.job(number).restarts == 1, "the job to requeue itself")
    saved = (started / "joint" / "latest").read_text()
    steps = [line["step"] for line in lines(started, "joint") if line["split"] == "train"]
    cluster.run("scancel", str(number))
    assert "stopped early; requeueing, 1 of at most 5" in log_of(case.directory, number)
    assert steps[-1] == int(saved.strip().removeprefix("step_")) >= DISTURBED_AT


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_told_to_end_in_the_middle(cluster: Cluster, case: Case, started: Path, signal: str) -> None:
    """What Slurm sends before the limit, sent to the ranks at a moment that the test knows."""
    number = start_joint(cluster, case, started)
    cluster.run("scancel", f"--signal={signal}", str(number))
    assert_as_undisturbed(cluster, case, started, number)
    assert "stopped early; requeueing, 1 of at most 5" in log_of(case.directory, number)


def test_preempted_with_time_to_save(cluster: Cluster, case: Case, started: Path) -> None:
    """It saves within the grace time, wherever it is, and goes on from there."""
    number = start_joint(cluster, case, started, "--partition=patient")
    other = cluster.submit(case.directory, "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    assert cluster.wait(other).state == "COMPLETED"
    assert_as_undisturbed(cluster, case, started, number)
    assert "stopped early; requeueing, 1 of at most 5" in log_of(case.directory, number)


def test_a_failing_warm_up_keeps_joint_from_starting(cluster: Cluster, case: Case, tmp_path: Path) -> None:
    """A wrong configuration ends in the preflight: nothing is loaded, nothing written, nothing requeued."""
    wrong = (*SMALL, script("warmup.sh"), "--config", case.config, f"run_dir={tmp_path / 'run'}", "warmup.stps=3")
    warmup = cluster.submit(case.directory, *wrong)
    joint = cluster.submit(
        case.directory, *SMALL, f"--dependency=afterok:{warmup}", "--kill-on-invalid-dep=yes", script("joint.sh"),
        "--config", case.config, f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    job = cluster.wait(warmup)
    assert (job.state, job.code, job.restarts) == ("FAILED", 2, 0)
    unknown = "override 'warmup.stps=3': warmup.stps: unknown key; the nearest valid one is 'warmup.steps'"
    assert errors_of(case.directory, warmup) == [f"megafuser: error: {unknown}"]
    assert cluster.wait(joint).state == "CANCELLED"
    assert log_of(case.directory, joint) == "" and not (tmp_path / "run").exists()


def test_joint_without_a_warm_up(cluster: Cluster, case: Case, tmp_path: Path) -> None:
    run = tmp_path / "run"
    number = cluster.submit(
        case.directory, *SMALL, script("joint.sh"), "--config", case.config, f"run_dir={run}"
    )  # fmt: skip
    assert cluster.wait(number).code == 2
    remedy = f"no warm-up checkpoint in {run}/warmup; run `megafuser warmup` first or set joint.init_from"
    assert errors_of(case.directory, number) == [f"megafuser: error: {remedy}"]


@pytest.mark.parametrize("name", ["warmup.sh", "joint.sh"])
def test_bare_commands_say_how_to_make_what_the_recipe_needs(cluster: Cluster, tmp_path: Path, name: str) -> None:
    """`sbatch slurm/warmup.sh` and no more: 16 ranks, the 13B recipe, whose checkpoints are not here."""
    (tmp_path / "logs").mkdir()
    number = cluster.submit(tmp_path, script(name))
    job = cluster.wait(number)
    assert (job.state, job.code, job.restarts) == ("FAILED", 2, 0)
    convert = "make it with tools/convert_hf_to_mcore.py --hf ORG/NAME --out"
    named = {"text": "ultralm-13b", "code": "codellama-13b", "math": "wizardmath-13b"}
    assert errors_of(tmp_path, number) == [
        f"megafuser: error: specialist {specialist}: checkpoints/{directory} is not a directory; "
        f"{convert} checkpoints/{directory}"
        for specialist, directory in named.items()
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]
