"""Both stages at every layout against one rank: the numbers in metrics.jsonl must not depend on the layout.

All layouts of one world size run in the same processes, see `run_stages`. The one-rank run is this process.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.cli.main import main
from megafuser.config.run_directory import RunDirectory, step_name
from megafuser.conversion.export import export_checkpoint
from tests.fused_case import OTHER_FAMILIES, make_case, write_config
from tests.metrics_lines import TIMING
from tests.parallel.launch import run_commands
from tests.unit.watching.made_up import read_events, text

TOLERANCE = 1e-4
# a fiftieth of the way that a step of the joint stage takes a weight: Adam blows the rounding of tiny gradients up
WEIGHTS_TOLERANCE = 2e-5
# how fast, and how many pads: what a layout may change
OF_THE_LAYOUT = {*TIMING, "packing_efficiency"}
STEPS = 4
OTHER_FAMILIES_STEPS = 3
Line = dict[str, Any]

TP2 = ("parallel.tensor=2",)
PP2 = ("parallel.pipeline=2",)
SEQUENCE = (*TP2, "parallel.sequence=true")
TP2_PP2 = (*TP2, *PP2)
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
# Tensor and pipeline parallelism one at a time are in "tp2_pp2", of four ranks, together.
LAYOUTS_OF_TWO = {"sequence": SEQUENCE, "dp2": ()}
MORE_LAYOUTS_OF_TWO = {"tp2": TP2, "pp2": PP2}
# Saved at the end only: a run of these goes nowhere on.
ONE_SAVE = (f"checkpoint.interval={STEPS}",)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def other_families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case(tmp_path_factory.mktemp("families"), joint_steps=OTHER_FAMILIES_STEPS, specialists=OTHER_FAMILIES)


@pytest.fixture(scope="module")
def two_ranks(untied: Path, other_families: Path) -> None:
    run_commands(2, [*commands_of(untied, LAYOUTS_OF_TWO), joint_of_others(other_families, "sequence", SEQUENCE)])


@pytest.fixture(scope="module")
def two_ranks_more(untied: Path, tied: Path, other_families: Path) -> None:
    commands = [*commands_of(untied, MORE_LAYOUTS_OF_TWO), *commands_of(tied, {"pp2": PP2})]
    run_commands(2, [*commands, joint_of_others(other_families, "tp2", TP2)])


def joint_of_others(root: Path, name: str, layout: tuple[str, ...]) -> list[str]:
    """Joint training from the one rank's warm-up."""
    return stages(root, name, (*layout, f"joint.init_from={root / 'one' / 'warmup'}", *ONE_SAVE))[1]


@pytest.fixture(scope="module")
def four_ranks(untied: Path) -> None:
    run_commands(4, stages(untied, "tp2_pp2", TP2_PP2))


@pytest.fixture(scope="module")
def four_ranks_tied(tied: Path) -> None:
    run_commands(4, stages(tied, "pp2_dp2", (*PP2, *OVERLAP)))


def case(root: Path, *, joint_steps: int = STEPS, **settings: Any) -> Path:
    """A case and its one-rank run, `one`; `settings` are `make_case`'s."""
    values = make_case(root, **settings)
    # an even number of rows, and an odd one of samples, for two ranks to share
    values["data"]["sequence_length"] = 256
    # large enough to move the losses by per cents, small enough that four steps of Adam do not blow rounding up
    values["warmup"]["lr"], values["joint"]["lr"] = 5e-2, 1e-3
    values["joint"]["steps"] = joint_steps
    values["optimizer"] = {"weight_decay": 0.1}
    values["checkpoint"] = {"interval": 2, "keep": 3}
    write_config(root / "config.yaml", values)
    for command in stages(root, "one", ()):
        assert main(command) == 0
    return root


def stages(root: Path, run: str, overrides: Sequence[str]) -> list[list[str]]:
    """The commands of both stages into the run directory `run`."""
    return [
        [stage, "--config", str(root / "config.yaml"), f"run_dir={root / run}", *overrides]
        for stage in ("warmup", "joint")
    ]


def commands_of(root: Path, layouts: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Both stages at each layout, into run directories of the layouts' names."""
    return [command for name, layout in layouts.items() for command in stages(root, name, (*layout, *ONE_SAVE))]


def lines(root: Path, run: str) -> list[Line]:
    text = (root / run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def assert_same(
    found: Sequence[Line], expected: Sequence[Line], tolerance: float, of_norm_parts: float | None = None
) -> None:
    """Every number of every line but the timings, gate weights and gradient norms included.

    A specialist's norm has fewer terms for rounding to cancel in than the global norm: `of_norm_parts` is for those.
    """
    assert [(line["stage"], line["split"], line["step"]) for line in found] == [
        (line["stage"], line["split"], line["step"]) for line in expected
    ]
    for ours, reference in zip(found, expected, strict=True):
        assert ours.keys() == reference.keys()
        for key in reference.keys() - {*OF_THE_LAYOUT, "stage", "split"}:
            allowed = of_norm_parts or tolerance if key.startswith("grad_norm/") else tolerance
            assert ours[key] == pytest.approx(reference[key], rel=allowed), (key, reference)


def test_the_one_rank_run_is_worth_comparing_with(untied: Path) -> None:
    """Four steps of both stages with validation; losses and gates that move, so that equality says something."""
    reference = lines(untied, "one")
    wanted = {("train", step) for step in range(1, STEPS + 1)} | {("valid", 2), ("valid", 4)}
    for stage in ("warmup", "joint"):
        of_stage = [line for line in reference if line["stage"] == stage]
        assert {(line["split"], line["step"]) for line in of_stage} == wanted
        assert all(
            {"loss", "loss/text", "loss/code", "loss/math", "gate/math/code"} <= line.keys() for line in of_stage
        )
        valid = [line for line in of_stage if line["split"] == "valid"]
        assert abs(valid[1]["loss"] / valid[0]["loss"] - 1) > 20 * TOLERANCE
        assert abs(valid[1]["gate/text/code"] / valid[0]["gate/text/code"] - 1) > 10 * TOLERANCE


@pytest.mark.parallel
@pytest.mark.parametrize("layout", LAYOUTS_OF_TWO)
def test_two_ranks_equal_one(untied: Path, two_ranks: None, layout: str) -> None:
    assert_same(lines(untied, layout), lines(untied, "one"), TOLERANCE)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", LAYOUTS_OF_TWO)
def test_what_a_validation_shows_of_single_tokens_is_that_of_one_rank(
    untied: Path, two_ranks: None, layout: str
) -> None:
    assert_shows_the_same(untied, layout)


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.parametrize("layout", MORE_LAYOUTS_OF_TWO)
def test_tensor_and_pipeline_alone_equal_one_rank(untied: Path, two_ranks_more: None, layout: str) -> None:
    assert_same(lines(untied, layout), lines(untied, "one"), TOLERANCE)
    assert_shows_the_same(untied, layout)


@pytest.mark.slow
@pytest.mark.parallel
def test_tied_embeddings_in_two_stages_equal_one_rank(tied: Path, two_ranks_more: None) -> None:
    """Each copy of a tied embedding has a part of its gradient; both copies need the sum."""
    assert_same(lines(tied, "pp2"), lines(tied, "one"), TOLERANCE)


def assert_shows_the_same(untied: Path, layout: str) -> None:
    """The rows are on some ranks and the gate's weights on some; every token is shown once."""
    found, expected = (read_events(untied / run / "tensorboard" / "joint") for run in (layout, "one"))
    assert found.Tags()["histograms"] == expected.Tags()["histograms"] != []
    for tag in expected.Tags()["histograms"]:
        ours, reference = ([event.histogram_value for event in events.Histograms(tag)] for events in (found, expected))
        assert [histogram.num for histogram in ours] == [histogram.num for histogram in reference]
        assert [histogram.sum for histogram in ours] == pytest.approx([h.sum for h in reference], rel=TOLERANCE)
    tags = [tag.removesuffix("/text_summary") for tag in expected.Tags()["tensors"]]
    assert tags == [f"valid/sample/{domain}/{index}" for domain in ("text", "code", "math") for index in (0, 1)]
    for tag in tags:
        ours, reference = (re.sub("[🟦🟧🟪]", "", text(events, tag)).split("\n\n") for events in (found, expected))
        assert ours[-2:] == reference[-2:], "prompt and response"


@pytest.mark.parallel
def test_tensor_and_pipeline_together_equal_one_rank(untied: Path, four_ranks: None) -> None:
    assert_same(lines(untied, "tp2_pp2"), lines(untied, "one"), TOLERANCE)
    assert_shows_the_same(untied, "tp2_pp2")


@pytest.mark.slow  # with frozen specialists and groups besides, `test_parts` has the same
@pytest.mark.parallel
def test_tied_embeddings_with_a_distributed_optimizer_equal_one_rank(tied: Path, four_ranks_tied: None) -> None:
    """Gradients are spread over data parallelism before the copies' sum: both must be spread alike.

    Weights are gathered when the next forward needs them, which may be a validation's, or a checkpoint does.
    """
    assert_same(lines(tied, "pp2_dp2"), lines(tied, "one"), TOLERANCE)


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("layout", "runs"), [("sequence", "two_ranks"), pytest.param("tp2", "two_ranks_more", marks=pytest.mark.slow)]
)
def test_biases_and_qk_norms_train_alike_on_two_ranks(
    request: pytest.FixtureRequest, other_families: Path, layout: str, runs: str
) -> None:
    """A rank has the whole gradient of some and a part of that of others; which ones depends on the layout."""
    request.getfixturevalue(runs)
    expected = [line for line in lines(other_families, "one") if line["stage"] == "joint"]
    assert_same(lines(other_families, layout), expected, TOLERANCE)
    found, reference = (joint_weights(other_families / run) for run in (layout, "one"))
    assert found.keys() == reference.keys()
    # what is added to every specialist's score changes nothing: its gradient is rounding, which Adam blows up
    for key in reference.keys() - {"gate.fc2.bias"}:
        torch.testing.assert_close(found[key], reference[key], rtol=0, atol=WEIGHTS_TOLERANCE, msg=key)


def test_every_bias_and_norm_of_the_one_rank_run_moves(other_families: Path) -> None:
    trained, moved = joint_weights(other_families / "one"), set()
    for name in OTHER_FAMILIES:
        for key, before in all_weights(other_families / "mcore" / name / "weights").items():
            after = trained[f"specialists.{name}.{key}"][: len(before)]
            assert (after - before).abs().max() > 50 * WEIGHTS_TOLERANCE, key
            moved.add(key.removeprefix("decoder.layers."))
    attention = {f"self_attention.{name}" for name in ("linear_qkv.bias", "linear_proj.bias", "q_layernorm.weight")}
    assert moved >= attention | {"self_attention.k_layernorm.weight", "mlp.linear_fc1.bias", "mlp.linear_fc2.bias"}


def joint_weights(run: Path) -> dict[str, torch.Tensor]:
    """All weights of the joint stage's last checkpoint."""
    directory = RunDirectory(run).step_directory("joint", OTHER_FAMILIES_STEPS) / "weights"
    return {key: value for key, value in all_weights(directory).items() if key.startswith(("specialists.", "gate."))}


def all_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a distributed checkpoint but the optimizer's, layers stacked in front."""
    found = {}
    with StreamedReader(directory) as reader:
        for key, shape in reader.shapes.items():
            if key.startswith("optimizer."):
                continue
            if ".layers." in key:
                found[key] = torch.stack([reader.rows(key, layer, 0, shape[1]) for layer in range(shape[0])])
            else:
                found[key] = reader.rows(key, None, 0, shape[0])
    return found


@pytest.mark.parallel
# "text" has nothing that the others lack: code has two layers and more rows, math has no groups of heads
@pytest.mark.parametrize("specialist", [pytest.param("text", marks=pytest.mark.slow), "code", "math"])
def test_a_specialist_is_exported_alike_from_any_layout(untied: Path, four_ranks: None, specialist: str) -> None:
    """Pieces put together in a wrong order would differ by as much as the weights themselves."""
    exported = {}
    for run in ("one", "tp2_pp2"):
        out = untied / f"{run}.{specialist}"
        export_checkpoint(untied / run, out, specialist=specialist, verify="none" if run == "one" else "logits")
        exported[run] = load_file(out / "model.safetensors")
    original = load_file(untied / "hf" / specialist / "model.safetensors")
    assert exported["one"].keys() == exported["tp2_pp2"].keys() == original.keys()
    moved = 0.0
    for key, tensor in exported["one"].items():
        assert tensor.shape == original[key].shape
        torch.testing.assert_close(exported["tp2_pp2"][key], tensor, atol=1e-3, rtol=0)
        moved = max(moved, float((tensor - original[key]).abs().max()))
    assert moved > 1e-3, "the export has the trained weights, not those that training began with"


@pytest.mark.parallel
# of the joint stage, with frozen specialists and groups besides, `test_parts` has the same
@pytest.mark.parametrize("stage", ["warmup", pytest.param("joint", marks=pytest.mark.slow)])
def test_a_checkpoint_goes_on_at_another_layout(untied: Path, four_ranks: None, stage: str) -> None:
    go_on_with_one_rank(untied, "tp2_pp2", stage)


@pytest.mark.slow  # as above
@pytest.mark.parallel
def test_a_checkpoint_of_spread_optimizer_states_goes_on_at_another_layout(tied: Path, four_ranks_tied: None) -> None:
    go_on_with_one_rank(tied, "pp2_dp2", "joint")


def go_on_with_one_rank(root: Path, run: str, stage: str) -> None:
    """Takes a run back to step 2, and finishes it with one rank, optimizer state and all."""
    copy = root / f"{run}.{stage}"
    shutil.copytree(root / run, copy)
    directory = RunDirectory(copy)
    shutil.rmtree(directory.step_directory(stage, STEPS))
    directory.latest_file(stage).write_text(step_name(2) + "\n")
    command = stages(root, copy.name, ())[stage == "joint"]
    assert main(command) == 0
    expected = [line for line in lines(root, "one") if line["stage"] == stage and line["step"] > 2]
    found = [line for line in lines(root, copy.name) if line["stage"] == stage and line["step"] > 2]
    assert_same(found, expected, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parallel
def test_sequence_parallelism_in_two_stages_and_bf16(untied: Path) -> None:
    bf16 = ("precision.dtype=bf16",)
    run_commands(
        4, [*stages(untied, "sequence_pp2", (*SEQUENCE, *PP2)), *stages(untied, "bf16", (*SEQUENCE, *PP2, *bf16))]
    )
    assert_same(lines(untied, "sequence_pp2"), lines(untied, "one"), TOLERANCE)
    for command in stages(untied, "one_bf16", bf16):
        assert main(command) == 0
    assert_same(lines(untied, "bf16"), lines(untied, "one_bf16"), 2e-2, of_norm_parts=6e-2)


@pytest.mark.slow
@pytest.mark.parallel
def test_eight_ranks_in_three_dimensions_equal_one(tied: Path) -> None:
    run_commands(8, stages(tied, "tp2_pp2_dp2", TP2_PP2))
    assert_same(lines(tied, "tp2_pp2_dp2"), lines(tied, "one"), TOLERANCE)
