"""The embedding's gradient goes into `main_grad`, just the rows of the ids, and equals PyTorch's."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.build import build_specialist
from megafuser.specialist.embedding import Embedding, _Lookup
from tests.unit.specialist.small_card import CARD

IDS = torch.tensor([[5, 3, 5, 0, 7, 5]])


@pytest.fixture(scope="module")
def embedding() -> Iterator[Embedding]:
    with single_process_cpu():
        specialist = build_specialist(
            CARD, parallel=ParallelConfig(), precision=PrecisionConfig(dtype="fp32"), backend="torch"
        )
        found = specialist.embedding.word_embeddings
        assert isinstance(found, Embedding)
        yield found


@pytest.fixture(autouse=True)
def without_gradients(embedding: Embedding) -> Iterator[None]:
    yield
    embedding.weight.grad = None
    for name in ("main_grad", "grad_added_to_main_grad", "zero_out_wgrad"):
        if hasattr(embedding.weight, name):
            delattr(embedding.weight, name)


def upstream(embedding: Embedding) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*IDS.shape, embedding.weight.shape[1], generator=generator)


def reference(embedding: Embedding, gradient: torch.Tensor) -> torch.Tensor:
    weight = embedding.weight.detach().double().requires_grad_()
    torch.nn.functional.embedding(IDS, weight).backward(gradient.double())
    assert weight.grad is not None
    return weight.grad


def test_looks_up_rows(embedding: Embedding) -> None:
    assert torch.equal(embedding(IDS), embedding.weight[IDS])


def test_without_main_grad_the_gradient_is_pytorchs(embedding: Embedding) -> None:
    gradient = upstream(embedding)
    embedding(IDS).backward(gradient)
    torch.testing.assert_close(embedding.weight.grad.double(), reference(embedding, gradient))


def test_main_grad_takes_the_rows_of_several_micro_batches(embedding: Embedding) -> None:
    gradient = upstream(embedding)
    weight: Any = embedding.weight
    weight.main_grad = torch.ones(weight.shape)
    for _ in range(2):
        embedding(IDS).backward(gradient)
    assert weight.grad_added_to_main_grad and weight.grad is not None  # which lets DDP's hook fire
    torch.testing.assert_close(weight.main_grad.double(), 1 + 2 * reference(embedding, gradient))


def test_rows_of_bfloat16_are_added_in_float32() -> None:
    """A thousand times the same id: bfloat16 would stop counting at 256."""
    weight: Any = torch.nn.Parameter(torch.zeros(4, 2, dtype=torch.bfloat16))
    weight.main_grad = torch.zeros(4, 2)
    _Lookup.apply(weight, torch.full((1000,), 2)).backward(torch.ones(1000, 2, dtype=torch.bfloat16))
    assert weight.main_grad.tolist() == [[0, 0], [0, 0], [1000, 1000], [0, 0]]


def test_a_tied_weight_leaves_it_to_the_heads_zeros_to_fire_the_hook(embedding: Embedding) -> None:
    weight: Any = embedding.weight
    weight.main_grad = torch.zeros(weight.shape)
    weight.zero_out_wgrad = True
    gradient = upstream(embedding)
    embedding(IDS).backward(gradient)
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad.double(), reference(embedding, gradient))


def test_nothing_as_large_as_the_vocabulary_is_written(embedding: Embedding) -> None:
    weight: Any = embedding.weight
    weight.main_grad = torch.zeros(weight.shape)

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            written = not any(name in str(function) for name in ("empty_like", "detach"))
            if written and out.data_ptr() != weight.main_grad.data_ptr():
                self.largest = max(self.largest, out.numel())
            return out

    found = embedding(IDS)
    with Sizes() as sizes:
        found.backward(upstream(embedding))
    assert 0 < sizes.largest < weight.numel()
