"""A step of either stage: what it changes, by how much, and what it leaves behind."""

import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from megafuser.config.optimizer import OptimizerConfig
from megafuser.data.row_building import build_row
from tests.unit.training.small_run import SmallRun, different, model_of, parameters_of, step_rows


def test_warmup_changes_the_gate_and_no_bit_of_a_specialist(run: SmallRun) -> None:
    with run.engine("warmup") as (session, engine):
        before = parameters_of(engine.model)
        for step in (1, 2, 3):
            engine.step(step_rows(session, "warmup", step))
        changed = different(before, parameters_of(engine.model))
        assert set(changed) == {"gate.fc1.weight", "gate.fc1.bias", "gate.fc2.weight", "gate.fc2.bias"}
        optimized = [p for group in engine.optimizer.param_groups for p in group["params"]]
        assert len(optimized) == len(changed)


def test_joint_training_changes_everything_that_the_samples_meet(run: SmallRun) -> None:
    with run.engine("joint") as (session, engine):
        before = parameters_of(engine.model)
        for step in (1, 2):
            engine.step(step_rows(session, "joint", step))
        assert set(different(before, parameters_of(engine.model))) == set(before)


def test_the_learning_rate_told_is_the_specialists_where_the_gate_has_another(run: SmallRun) -> None:
    with run.engine("joint", "optimizer.gate_lr_multiplier=4") as (session, engine):
        rates = {float(group["lr"]) for group in engine.optimizer.param_groups}
        assert rates == {session.config.joint.lr, 4 * session.config.joint.lr}
        assert engine.step(step_rows(session, "joint", 1)).lr == session.config.joint.lr


class ByHand:
    """PyTorch's AdamW and clipping on copies of an engine's parameters; biases and norms are not decayed."""

    def __init__(self, model: torch.nn.Module, settings: OptimizerConfig, lr: float) -> None:
        self.copies = {name: torch.nn.Parameter(value) for name, value in parameters_of(model).items()}
        decayed = [p for name, p in self.copies.items() if p.dim() > 1 and not name.endswith("bias")]
        others = [p for name, p in self.copies.items() if p.dim() == 1 or name.endswith("bias")]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
        self.clip = settings.clip_grad

    def step(self, model: torch.nn.Module) -> float:
        """Takes the gradients that the engine left; gives their norm."""
        for name, parameter in model.named_parameters():
            self.copies[name].grad = parameter.main_grad.clone()  # type: ignore[attr-defined]
        limit = self.clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.copies.values()), limit))
        self.optimizer.step()
        return norm

    def largest_difference(self, model: torch.nn.Module) -> float:
        """Of an element, in units of the largest step that Adam can make."""
        lr = self.optimizer.param_groups[0]["lr"]
        return max(
            float((self.copies[name] - parameter).abs().max()) / lr
            for name, parameter in model.named_parameters()
            if name != "gate.fc2.bias"  # its gradient is zero but for rounding, of which Adam makes whole steps
        )


@pytest.mark.parametrize(
    ("distributed", "clip", "clips"),
    [("true", 1.0, True), ("false", 1.0, True), ("true", 100.0, False), ("true", 0.0, False)],
)
def test_updates_are_those_of_adamw_with_clipping(run: SmallRun, distributed: str, clip: float, clips: bool) -> None:
    overrides = (f"optimizer.distributed={distributed}", f"optimizer.clip_grad={clip}")
    with run.engine("joint", *overrides) as (session, engine):
        by_hand = ByHand(engine.model, session.config.optimizer, lr=session.config.joint.lr)
        for step in (1, 2):
            rows = step_rows(session, "joint", step)
            engine.compute_gradients(rows)
            norm = by_hand.step(engine.model)
            result = engine.step(rows)
            assert result.grad_norm == pytest.approx(norm, rel=1e-5)
            assert (norm > clip > 0) == clips
            assert by_hand.largest_difference(engine.model) < 1e-3
            by_hand.optimizer.param_groups[0]["lr"] = by_hand.optimizer.param_groups[1]["lr"] = float(
                engine.optimizer.param_groups[0]["lr"]
            )


def test_joint_training_starts_with_a_fresh_optimizer(finished: SmallRun) -> None:
    """The log and weights of the run itself are those of an AdamW that starts anew: warm-up's moments are gone."""
    start = finished.step("warmup", 4)
    with finished.engine("joint", start=start) as (session, engine):
        by_hand = ByHand(engine.model, session.config.optimizer, lr=session.config.joint.lr)
        for inner in engine.optimizer.chained_optimizers:
            assert all(not state["exp_avg"].any() for state in inner.optimizer.state.values() if "exp_avg" in state)
        norms = []
        for step in (1, 2):
            engine.compute_gradients(step_rows(session, "joint", step))
            norms.append(by_hand.step(engine.model))
            for group in by_hand.optimizer.param_groups:
                group["lr"] *= 0.5 * (1 + 0.5**0.5)  # a quarter of the cosine's way from 1 to -1
            with torch.no_grad():
                for name, parameter in engine.model.named_parameters():
                    parameter.copy_(by_hand.copies[name])
        assert [line["grad_norm"] for line in finished.lines("joint", "train")][:2] == pytest.approx(norms, rel=1e-5)
        ours = parameters_of(model_of(session, finished.step("joint", 2)))
    for name in ("gate.fc1.weight", "gate.fc2.weight", "specialists.1.decoder.final_layernorm.weight"):
        torch.testing.assert_close(ours[name], by_hand.copies[name].detach(), rtol=0, atol=1e-5)


def test_neither_the_split_into_rows_nor_empty_rows_change_a_step(run: SmallRun) -> None:
    with run.engine("joint") as (session, engine):
        (domains,) = session.load_data("train")
        references = np.concatenate([row.references for row in step_rows(session, "joint", 1)])
        assert len(references) == 6

        def step_of(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            sums = engine.compute_gradients([build_row(domains, references[list(row)], 512) for row in rows])
            return sums, {name: p.main_grad.clone() for name, p in engine.model.named_parameters()}

        sums, gradients = step_of([[0, 1], [2, 3], [4, 5]])
        for rows in ([[0], [1, 2], [], [3], [4], [5]], [[5, 4], [3, 0, 1], [2]]):
            other_sums, other_gradients = step_of(rows)
            torch.testing.assert_close(other_sums, sums, rtol=1e-6, atol=1e-6)
            for name, gradient in gradients.items():
                scale = max(float(gradient.abs().max()), 1e-2)
                torch.testing.assert_close(other_gradients[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_memory_does_not_grow_with_the_steps(run: SmallRun, stage: str) -> None:
    with run.engine(stage) as (session, engine):
        rows = step_rows(session, stage, 1)

        def live_tensors() -> tuple[int, int]:
            """Number and bytes of the tensors that anything still holds."""
            gc.collect()
            tensors = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
            sizes = [tensor.nbytes for tensor in tensors if tensor.layout is torch.strided]
            return len(sizes), sum(sizes)

        def after(steps: int) -> tuple[int, int]:
            for _ in range(steps):
                engine.step(rows)
            return live_tensors()

        assert after(3) == after(5)


def test_a_learning_rate_of_zero_changes_nothing(run: SmallRun) -> None:
    with run.engine("joint", "joint.lr=0") as (session, engine):
        before = parameters_of(engine.model)
        result = engine.step(step_rows(session, "joint", 1))
        assert result.lr == 0 and result.grad_norm > 0
        assert not different(before, parameters_of(engine.model))


def test_bfloat16_keeps_a_master_copy(run: SmallRun) -> None:
    """Updates far below bfloat16's resolution add up instead of being rounded away."""
    lr = 2e-4
    with run.engine("joint", "precision.dtype=bf16", f"joint.lr={lr}", "joint.steps=1000") as (session, engine):
        norm = engine.model.specialists[0].decoder.final_layernorm.weight
        before = norm.detach().clone()
        assert before.dtype == torch.bfloat16
        assert lr < float(before.abs().min()) * 2**-9 / 4  # a step is less than a quarter of what would round up
        rows = step_rows(session, "joint", 1)
        for _ in range(14):
            engine.step(rows)
        assert not torch.equal(norm, before)
