"""What checkpoints tell of the data they were trained on, and of what came before."""

import dataclasses

from megafuser.checkpoint.manifest import read_manifest
from megafuser.training.history import History
from tests.unit.training.small_run import STEPS, SmallRun


def test_counts_are_the_sums_of_the_steps(finished: SmallRun) -> None:
    for stage in ("warmup", "joint"):
        for step in (2, STEPS):
            counts = read_manifest(finished.step(stage, step)).content["counts"]
            lines = finished.lines(stage, "train")[:step]
            for key in ("samples", "tokens", "response_tokens"):
                assert counts[key] == sum(line[key] for line in lines)
                assert counts[key] == sum(domain[key] for domain in counts["domains"].values())
            assert list(counts["domains"]) == ["text", "code", "math"]
            for name, domain in counts["domains"].items():
                assert domain["samples"] == 2 * step
                assert domain["response_tokens"] == sum(line[f"response_tokens/{name}"] for line in lines)


def test_a_joint_checkpoint_keeps_what_the_warmup_was(finished: SmallRun) -> None:
    warmup = read_manifest(finished.step("warmup", STEPS)).content
    assert "warmup" not in warmup and "earlier_joint" not in warmup
    joint = read_manifest(finished.step("joint", STEPS)).content
    assert joint["warmup"] == {"step": STEPS, "counts": warmup["counts"]}
    assert "earlier_joint" not in joint


def test_joint_training_from_a_joint_checkpoint_keeps_both(finished: SmallRun, run: SmallRun) -> None:
    assert run.stage("joint", f"joint.init_from={finished.directory}", "joint.steps=1") == 0
    first = read_manifest(finished.step("joint", STEPS))
    content = read_manifest(run.step("joint", 1)).content
    assert content["warmup"] == first.content["warmup"]
    assert content["earlier_joint"] == [{"step": STEPS, "counts": first.content["counts"]}]
    assert content["counts"]["samples"] == 6
    # and going on keeps them
    resumed = History.resume(["text", "code", "math"], read_manifest(run.step("joint", 1)))
    assert resumed.counts == content["counts"] and resumed.warmup == content["warmup"]
    assert resumed.earlier_joint == content["earlier_joint"]
    assert dataclasses.asdict(resumed.validation) == content["validation"] and resumed.skipped == 0


def test_references_say_what_the_specialists_were_converted_from(finished: SmallRun) -> None:
    for stage in ("warmup", "joint"):
        references = read_manifest(finished.step(stage, STEPS)).content["references"]
        for name, reference in references.items():
            assert reference["source"] == {"name": name, "repository": None, "revision": None}
