"""What pipelines keep and wait for, against megatron-core's own schedules as they run on every rank."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.pipeline_parallel import schedules

from megafuser.config.compute import ParallelConfig
from megafuser.fusion.row import PackedRow
from megafuser.planning.pipeline_schedule import bubble, peak_activations
from megafuser.training.pipeline import run_pipeline
from tests.unit.planning.architectures import EQUAL
from tests.unit.planning.pretended import build_chunks, pretended_rank
from tests.unit.planning.rows import make_row


def order_of_work(
    monkeypatch: pytest.MonkeyPatch, parallel: ParallelConfig, rank: int, micro_batches: int
) -> Iterator[tuple[bool, int]]:
    """Whether forward, and the chunk, of everything that one rank computes in a step, in order."""
    events: list[tuple[bool, int]] = []
    outputs: list[tuple[torch.Tensor, int]] = []
    forward, backward = schedules.forward_step, schedules.backward_step

    def unwrapped(output: Any) -> torch.Tensor:
        return output[0] if isinstance(output, list) else output

    def logged_forward(step: Any, data: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        output, tokens = forward(step, data, model, *args, **kwargs)
        outputs.append((unwrapped(output), chunks.index(model)))
        events.append((True, outputs[-1][1]))
        return output, tokens

    def logged_backward(inputs: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
        events.append((False, next(chunk for other, chunk in outputs if other is unwrapped(output))))
        return backward(inputs, output, *args, **kwargs)

    def step(rows: Iterator[PackedRow], model: Any) -> tuple[Any, Any]:
        output = model(next(rows))
        return output, lambda loss: (loss.fused.sum(), torch.tensor(1, dtype=torch.int), torch.zeros(1, 1))

    monkeypatch.setattr(schedules, "forward_step", logged_forward)
    monkeypatch.setattr(schedules, "backward_step", logged_backward)
    with pretended_rank(rank, parallel.pipeline, parallel):
        chunks = build_chunks(EQUAL, parallel, "fp32")
        for parameter in (parameter for chunk in chunks for parameter in chunk.parameters()):
            torch.nn.init.normal_(parameter, std=0.02)
        rows = [make_row([20, 10], 32, len(EQUAL)) for _ in range(micro_batches)]
        run_pipeline(chunks, rows, step, forward_only=False, columns=(1, 1))
    yield from events


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("virtual", "micro_batches"), [(1, 1), (1, 2), (1, 5), (2, 2), (2, 4), (2, 8)], ids=lambda size: str(size)
)
def test_the_peak_is_that_of_the_real_schedule(
    monkeypatch: pytest.MonkeyPatch, rank: int, virtual: int, micro_batches: int
) -> None:
    sizes = [5.0, 3.0][:virtual]  # unequal, so that it matters whose are kept
    kept = peak = 0.0
    parallel = ParallelConfig(pipeline=2, virtual_pipeline=virtual)
    for is_forward, chunk in order_of_work(monkeypatch, parallel, rank, micro_batches):
        kept += sizes[chunk] if is_forward else -sizes[chunk]
        peak = max(peak, kept)
    assert kept == 0 and peak > 0
    assert peak_activations(sizes, pipeline=2, rank=rank, micro_batches=micro_batches) == peak


def test_without_a_pipeline_one_micro_batch_is_kept() -> None:
    assert peak_activations([4.0], pipeline=1, rank=0, micro_batches=9) == 4.0


def test_the_bubble_shrinks_with_micro_batches_and_chunks() -> None:
    assert bubble(pipeline=1, virtual=1, micro_batches=3) == 0
    assert bubble(pipeline=4, virtual=1, micro_batches=12) == 0.25
    assert bubble(pipeline=4, virtual=2, micro_batches=12) == 0.125
