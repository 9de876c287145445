"""The embedding's gradient goes into `main_grad`, just the rows of the ids, and equals PyTorch's."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers
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
        with torch.no_grad():  # building leaves the weights to a checkpoint: as yet they are whatever memory held
            found.weight.normal_(generator=torch.Generator().manual_seed(1))
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


def test_the_same_rows_add_up_to_the_same_bits_with_several_threads() -> None:
    """Rows of equal ids may not be added in whatever order the threads come to them."""
    generator = torch.Generator().manual_seed(0)
    ids, gradient = torch.randint(4, (20000,), generator=generator), torch.randn(20000, 8, generator=generator)
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        for _ in range(5):
            weight: Any = torch.nn.Parameter(torch.zeros(4, 8))
            weight.main_grad = torch.zeros(4, 8)
            _Lookup.apply(weight, ids).backward(gradient)
            found.append(weight.main_grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, found[0]) for other in found[1:])


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


class Group:
    """Two tensor-parallel ranks, of which each is asked by itself."""

    def size(self) -> int:
        return 2


def half(weight: torch.nn.Parameter, rank: int, *, sequence_parallel: bool) -> Embedding:
    """One of two ranks' part of an embedding, where what is reduced over both is the part alone."""
    part: Any = Embedding.__new__(Embedding)
    torch.nn.Module.__init__(part)
    part.weight = weight
    part.num_embeddings_per_partition = len(weight)
    part.vocab_start_index, part.vocab_end_index = rank * len(weight), (rank + 1) * len(weight)
    part.tp_group, part.reduce_scatter_embeddings = Group(), sequence_parallel
    return part


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_two_ranks_look_up_and_learn_what_one_does(monkeypatch: pytest.MonkeyPatch, sequence_parallel: bool) -> None:
    """Ids on both sides of the boundary; a rank's rows take nothing of ids that the other has."""
    reduced: list[bool] = []

    def reduce(scattered: bool) -> Any:
        def call(found: torch.Tensor, group: Group) -> torch.Tensor:
            reduced.append(scattered)
            return found

        return call

    monkeypatch.setattr(layers, "reduce_from_tensor_model_parallel_region", reduce(False))
    monkeypatch.setattr(layers, "reduce_scatter_to_sequence_parallel_region", reduce(True))
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(8, 3, generator=generator)
    ids = torch.tensor([[0, 3, 4, 7, 4]])
    halves: list[Any] = [torch.nn.Parameter(rows.clone()) for rows in whole.split(4)]
    found = sum(half(rows, rank, sequence_parallel=sequence_parallel)(ids) for rank, rows in enumerate(halves))
    assert reduced == [sequence_parallel] * 2
    assert torch.equal(found, whole[ids].transpose(0, 1) if sequence_parallel else whole[ids])
    for rows in halves:
        rows.main_grad = torch.zeros(rows.shape)
    gradient = torch.randn(found.shape, generator=generator)
    found.backward(gradient)
    expected = torch.zeros(8, 3).index_add_(0, ids[0], gradient.reshape(-1, 3))
    torch.testing.assert_close(torch.cat([rows.main_grad for rows in halves]), expected)
