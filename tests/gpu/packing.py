"""A packed row against each of its segments alone: nothing leaks, positions restart, pads count for nothing."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from megafuser.config.compute import PrecisionConfig
from megafuser.fusion.row import PackedRow
from tests.gpu.models import (
    TINY,
    TRANSFORMER_ENGINE,
    Machine,
    Sample,
    Size,
    build,
    engine_of,
    gradient_errors,
    gradients,
    hidden_states,
    random_samples,
    relative,
    row_of,
    trio,
)
from tests.gpu.report import Finding

SMALL = Size(hidden=512, layers=3, heads=8, groups=2, channels=64, vocabulary=4096)
# The same arithmetic in products of other sizes: rounding only. TF32 in Transformer Engine's fp32.
ROUNDING = {("torch", "fp32"): 1e-4, (TRANSFORMER_ENGINE, "fp32"): 5e-3}
BF16 = 2e-2


class Packing:
    """One model and a row of three samples, the first of which comes again as the last."""

    def __init__(self, machine: Machine, backend: str, dtype: str) -> None:
        """Builds it."""
        machine.require(backend)
        self.machine = machine
        cards = trio(TINY if machine.tiny else SMALL)
        self.model = build(machine, cards, PrecisionConfig(dtype=dtype), backend)  # type: ignore[arg-type]
        lengths, self.width = ([11, 21, 7], 80) if machine.tiny else ([150, 401, 33], 1024)
        first, *others = random_samples(lengths, cards["plain"].vocab_size)
        self.samples: list[Sample] = [first, *others, first]
        self.limit = ROUNDING.get((backend, dtype), BF16)

    def measure(self) -> Finding:
        """Differences of hidden states and gradients; leaks are exact, since nothing else in the row changes."""
        packed = self._row(self.samples)
        states = self._by_segment(packed)
        alone = [self._by_segment(self._row([sample], pads=0))[0] for sample in self.samples]
        by_sample = zip(states, alone, strict=True)
        numbers = {
            "segments against themselves alone": max(_largest(ours, own) for ours, own in by_sample),
            "the same sample first and last": _largest(states[0], states[-1]),
            "other segments after a change in one": self._leak(states),
            "all segments after a change in the pads": self._leak_of_pads(packed, states),
        }
        engine = engine_of(self.model)
        loss, whole = gradients(engine, [packed])
        split_loss, split = gradients(engine, [self._row([sample], pads=0) for sample in self.samples])
        numbers |= {"loss": abs(loss / split_loss - 1), **gradient_errors(whole, split)}
        limits = dict.fromkeys(numbers, self.limit) | {"gradients, worst parameter": 5 * self.limit}
        exact = ("other segments after a change in one", "all segments after a change in the pads")
        return Finding(numbers, limits | dict.fromkeys(exact, 0.0))

    def _row(self, samples: Sequence[Sample], pads: int | None = None) -> PackedRow:
        used = sum(len(prompt) + len(response) for prompt, response in samples)
        return row_of(self.machine, samples, self.width if pads is None else used + pads)

    def _by_segment(self, row: PackedRow) -> list[list[torch.Tensor]]:
        """Per segment, the K specialists' states."""
        whole = hidden_states(self.model, row)
        view = row.specialists[0]
        lengths = view.cu_seqlens[: view.segments + 1].diff().tolist()
        return [list(segment) for segment in zip(*(states.split(lengths) for states in whole), strict=True)]

    def _leak(self, states: list[list[torch.Tensor]]) -> float:
        """The second sample in reverse; all others must keep every bit."""
        prompt, response = self.samples[1]
        changed = [self.samples[0], (list(prompt)[::-1], list(response)[::-1]), *self.samples[2:]]
        found = self._by_segment(self._row(changed))
        assert _largest(found[1], states[1]) > 0.1, "the change changed nothing"
        return max(_largest(found[index], states[index]) for index in (0, 2, 3))

    def _leak_of_pads(self, packed: PackedRow, states: list[list[torch.Tensor]]) -> float:
        views = []
        for view in packed.specialists:
            ids = view.input_ids.clone()
            ids[:, view.used :] = 5
            views.append(dataclasses.replace(view, input_ids=ids))
        found = self._by_segment(dataclasses.replace(packed, specialists=tuple(views)))
        return max(_largest(ours, before) for ours, before in zip(found, states, strict=True))


def _largest(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    return max(relative(a, b) for a, b in zip(ours, reference, strict=True))


def measure(machine: Machine, backend: str, dtype: str) -> Finding:
    """One model's."""
    return Packing(machine, backend, dtype).measure()


def checks(machine: Machine) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Both backends, both dtypes."""
    for backend in ("torch", TRANSFORMER_ENGINE):
        for dtype in ("fp32", "bf16"):
            yield f"{backend} {dtype}", partial(measure, machine, backend, dtype)
