"""Warm-up without a backward through specialists: the ordinary backward's numbers, and none of its memory."""

from typing import Any

import pytest
import torch

from megafuser.fusion.row import PackedRow
from megafuser.training.engine import Engine
from tests.unit.training.small_run import SmallRun, step_rows


def gate_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    assert engine.model.gate is not None
    return {name: weight.main_grad.clone() for name, weight in engine.model.gate.named_parameters()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_numbers_are_those_of_the_ordinary_backward(run: SmallRun, dtype: str) -> None:
    found = {}
    for stage in ("warmup", "joint"):
        with run.engine(stage, f"precision.dtype={dtype}") as (session, engine):
            # at its start the last layer is zero, and so is the first one's gradient
            torch.nn.init.normal_(engine.model.gate.fc2.weight, generator=torch.Generator().manual_seed(0))
            sums = engine.compute_gradients(step_rows(session, "warmup", 1))
            found[stage] = {"sums": sums, **gate_gradients(engine)}
    assert found["warmup"].keys() == found["joint"].keys()
    for name, value in found["joint"].items():
        assert torch.equal(found["warmup"][name], value), name
        assert value.any()


def test_no_activation_of_a_specialist_is_kept(run: SmallRun) -> None:
    kept: dict[str, list[torch.Size]] = {"warmup": [], "joint": []}
    tokens = 0
    for stage, shapes in kept.items():
        with run.engine(stage) as (session, engine):
            gate = {parameter.data_ptr() for parameter in engine.model.gate.parameters()}
            rows = step_rows(session, "warmup", 1)
            tokens = {row.targets.numel() for row in rows}

            def keep(tensor: torch.Tensor, shapes: list[torch.Size] = shapes, gate: set[int] = gate) -> torch.Tensor:
                if tensor.data_ptr() not in gate:
                    shapes.append(tensor.shape)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                engine.compute_gradients(rows)
    # what the gate keeps of the response positions, nothing of the row's width
    assert kept["warmup"] and all(shape[0] in tokens for shape in kept["warmup"] if shape)
    assert len(kept["joint"]) > 5 * len(kept["warmup"])


def test_specialists_are_held_in_the_compute_dtype_and_nothing_else(run: SmallRun) -> None:
    with run.engine("warmup", "precision.dtype=bf16") as (session, engine):
        engine.step(step_rows(session, "warmup", 1))
        for specialist in engine.model.specialists:
            for parameter in specialist.parameters():
                assert parameter.dtype is torch.bfloat16 and not parameter.requires_grad
                assert parameter.grad is None and not hasattr(parameter, "main_grad")
                assert not hasattr(parameter, "main_param")
        size = sum(parameter.numel() for parameter in engine.model.gate.parameters())
        assert sum(buffer.numel_unpadded for buffer in engine.ddp[0].buffers) == size


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_prompts_meet_neither_gate_nor_head(run: SmallRun, stage: str) -> None:
    """Last hidden states at other positions than the responses' are replaced by NaN: nothing notices."""
    found: list[dict[str, torch.Tensor]] = []
    for spoil in (False, True):
        with run.engine(stage) as (session, engine):
            (row, *_) = step_rows(session, stage, 1)
            if spoil:
                _spoil_prompts(engine, row)
            sums = engine.compute_gradients([row])
            heads = {
                f"head {name}": specialist.head_weight().main_grad.clone()
                for name, specialist in zip(engine.model.names, engine.model.specialists, strict=True)
                if stage == "joint"
            }
            found.append({"sums": sums, **gate_gradients(engine), **heads})
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


def _spoil_prompts(engine: Engine, row: PackedRow) -> None:
    for specialist, view in zip(engine.model.specialists, row.specialists, strict=True):
        prompts = torch.ones(view.input_ids.shape[1], dtype=torch.bool)
        prompts[view.response_positions] = False
        assert prompts.any()

        def spoil(_: Any, __: Any, output: torch.Tensor, prompts: torch.Tensor = prompts) -> torch.Tensor:
            return output.masked_fill(prompts[:, None, None], torch.nan)

        specialist.register_forward_hook(spoil)
