"""Training on a task that can be learned: every FP8 recipe's loss curve, and its loss in warm-up, beside bf16's."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from megafuser.config.compute import PrecisionConfig
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.training.engine import Engine
from tests.gpu.models import (
    TINY,
    TRANSFORMER_ENGINE,
    Machine,
    Sample,
    Size,
    build,
    copy_weights,
    engine_of,
    row_of,
    trio,
)
from tests.gpu.report import Finding, Skip

SMALL = Size(hidden=512, layers=4, heads=8, groups=4, channels=64, vocabulary=1024)
STEPS, TINY_STEPS, LAST = 50, 30, 5
# Steps in which the learning rate rises.
RISE = 5
# Of what bf16 learns (first loss − final loss), the part that another recipe's final loss may be away from bf16's.
MARGIN = 0.05
# The task is learned where the final loss is below this part of the first.
LEARNED = 0.5
RECIPES: dict[str, dict[str, Any]] = {
    "delayed": {"fp8": "delayed"},
    "tensorwise": {"fp8": "tensorwise"},
    "tensorwise, first and last layer bf16": {"fp8": "tensorwise", "fp8_first_last_bf16": True},
    "blockwise": {"fp8": "blockwise"},
    "blockwise, first and last layer bf16": {"fp8": "blockwise", "fp8_first_last_bf16": True},
}


class Curves:
    """The same steps under every recipe, from the same weights."""

    def __init__(self, machine: Machine) -> None:
        """Chooses the task: each token has one successor, and a response goes on from the prompt's last token."""
        self.machine = machine
        self.cards = trio(TINY if machine.tiny else SMALL)
        generator = np.random.default_rng(0)
        self.words = 12 if machine.tiny else 128
        # one circle: in several, a short one would be met late, and its samples' losses jump out of the curve
        circle = generator.permutation(self.words)
        self.successor = np.empty_like(circle)
        self.successor[circle] = np.roll(circle, -1)
        self.lr = 1e-2 if machine.tiny else 5e-4
        self.steps = TINY_STEPS if machine.tiny else STEPS
        self._bf16: list[float] | None = None
        self._learned: FusedModel | None = None

    def bf16(self) -> list[float]:
        """The curve of bf16, computed once."""
        if self._bf16 is None:
            self._learned = build(self.machine, self.cards, PrecisionConfig(), self.machine.backend)
            self._bf16 = self._curve(self._learned)
        return self._bf16

    def learned(self) -> Finding:
        """Whether bf16 learns the task: without that the other comparisons would say nothing."""
        curve = self.bf16()
        numbers = {"first loss": curve[0], "final loss": _final(curve), "final over first": _final(curve) / curve[0]}
        return Finding(numbers, {"final over first": LEARNED}, {"bf16": curve})

    def compare(self, backend: str, precision: PrecisionConfig) -> Finding:
        """A curve's end beside bf16's."""
        self._require(backend, precision)
        base, curve = self.bf16(), self._curve(build(self.machine, self.cards, precision, backend))
        away = abs(_final(curve) - _final(base)) / abs(base[0] - _final(base))
        numbers = {"first loss": curve[0], "final loss": _final(curve), "away from bf16": away}
        return Finding(numbers, {"away from bf16": MARGIN}, {"loss": curve})

    def in_warmup(self, backend: str, precision: PrecisionConfig) -> Finding:
        """A warm-up step's loss beside bf16's, both with the weights that bf16 has learned in joint training."""
        self._require(backend, precision)
        base = self.bf16()
        assert self._learned is not None
        losses = {}
        for name, own, where in (("bf16", PrecisionConfig(), self.machine.backend), ("loss", precision, backend)):
            model = build(self.machine, self.cards, own, where, trains=False)
            copy_weights(self._learned, model)
            losses[name] = self._losses(engine_of(model, joint=False, lr=0.0), steps=LAST)
        away = abs(_final(losses["loss"]) - _final(losses["bf16"])) / abs(base[0] - _final(base))
        numbers = {"final loss": _final(losses["loss"]), "away from bf16": away}
        return Finding(numbers, {"away from bf16": MARGIN}, losses)

    def _require(self, backend: str, precision: PrecisionConfig) -> None:
        self.machine.require(backend)
        if precision.fp8 == "blockwise":
            _require_blockwise()

    def _curve(self, model: FusedModel) -> list[float]:
        return self._losses(engine_of(model, lr=self.lr, steps=self.steps, rise=RISE), self.steps)

    def _losses(self, engine: Engine, steps: int) -> list[float]:
        losses = []
        for step in range(steps):
            sums = engine.step(self._rows(step)).sums
            losses.append(float(sums[0, 0] / sums[0, 1]))
        return losses

    def _rows(self, step: int) -> list[PackedRow]:
        """Two rows of new samples; a sample fills 64 positions, a row 8 samples and 128 pads (tiny: 16, 4, none)."""
        generator = np.random.default_rng(step + 1)
        length, count, width = (16, 4, 64) if self.machine.tiny else (64, 8, 640)
        return [row_of(self.machine, [self._sample(generator, length) for _ in range(count)], width) for _ in range(2)]

    def _sample(self, generator: np.random.Generator, length: int) -> Sample:
        prompt = generator.integers(0, self.words, length // 4).tolist()
        response, last = [], prompt[-1]
        for _ in range(length - len(prompt)):
            last = int(self.successor[last])
            response.append(last)
        return [word + 3 for word in prompt], [word + 3 for word in response]


def _final(curve: list[float]) -> float:
    return sum(curve[-LAST:]) / LAST


def _require_blockwise() -> None:
    from transformer_engine.pytorch import is_fp8_block_scaling_available

    available, reason = is_fp8_block_scaling_available(return_reason=True)
    if not available:
        raise Skip(f"Transformer Engine cannot scale blockwise here: {reason}")


def checks(machine: Machine) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """bf16 itself, fp32 on the torch backend, and the recipes."""
    curves = Curves(machine)
    yield f"bf16 on {machine.backend} learns", curves.learned
    yield "fp32 on torch", partial(curves.compare, "torch", PrecisionConfig(dtype="fp32"))
    yield "fp32 on torch, in warm-up", partial(curves.in_warmup, "torch", PrecisionConfig(dtype="fp32"))
    for name, settings in RECIPES.items():
        yield name, partial(curves.compare, TRANSFORMER_ENGINE, PrecisionConfig(**settings))
    for name in ("delayed", "tensorwise", "blockwise"):
        precision = PrecisionConfig(**RECIPES[name])
        yield f"{name}, in warm-up", partial(curves.in_warmup, TRANSFORMER_ENGINE, precision)
