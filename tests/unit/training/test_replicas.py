"""The check of the gate's replicas as a run has it; more than one rank is in tests/parallel."""

from tests.unit.training.small_run import SmallRun


def test_a_run_that_checks_its_replicas(run: SmallRun) -> None:
    assert run.stage("warmup", "debug.gate_replicas=true", "warmup.steps=1") == 0
    assert [line["step"] for line in run.lines("warmup", "train")] == [1]
