"""The mixture cross-entropy and its gradients against a dense formula in float64 with autograd."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from megafuser.fusion.mixture_loss import MixtureLoss, mixture_cross_entropy
from megafuser.fusion.vocabulary_parallel import VocabularyChunk
from megafuser.runtime.distributed import single_process_cpu

ROWS = 256
SIZES = (16, 24, 8)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with single_process_cpu():
        yield


class Case:
    """K hidden states, heads and weights, as leaves; heads have rows outside the shared vocabulary."""

    def __init__(self, tokens: int, shared: int, seed: int = 0, chunk: int = 1000) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shared = shared
        self.chunk_bytes = chunk * VocabularyChunk.bytes_per_token(ROWS, len(SIZES), torch.float32)
        self.hidden = [torch.randn(tokens, size, generator=generator).requires_grad_() for size in SIZES]
        self.heads = [(torch.randn(ROWS, size, generator=generator) / 2).requires_grad_() for size in SIZES]
        scores = torch.randn(tokens, len(SIZES), generator=generator)
        self.weights = torch.softmax(scores, dim=1).requires_grad_()
        self.targets = torch.randint(0, shared, (tokens,), generator=generator)
        if tokens > 1:
            self.targets[0], self.targets[1] = 0, shared - 1

    def leaves(self) -> list[torch.Tensor]:
        return [*self.hidden, *self.heads, self.weights]

    def loss(self, with_diagnostics: bool = False) -> MixtureLoss:
        return mixture_cross_entropy(
            self.hidden,
            self.heads,
            self.weights,
            self.targets,
            shared_vocabulary=self.shared,
            chunk_bytes=self.chunk_bytes,
            with_diagnostics=with_diagnostics,
        )


def dense(case: Case) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The formula, one token at a time, and the leaves that its gradients go to."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in case.leaves()]
    hidden, heads, weights = leaves[: len(SIZES)], leaves[len(SIZES) : -1], leaves[-1]
    fused, specialists, uniform = [], [], []
    for token, target in enumerate(case.targets.tolist()):
        logits = torch.stack([(head @ h[token])[: case.shared] for h, head in zip(hidden, heads, strict=True)])
        fused.append(-torch.log_softmax(weights[token] @ logits, dim=0)[target])
        uniform.append(-torch.log_softmax(logits.mean(dim=0), dim=0)[target])
        specialists.append(-torch.log_softmax(logits, dim=1)[:, target])
    values = {"fused": fused, "specialists": specialists, "uniform": uniform}
    return {name: torch.stack(value) for name, value in values.items()}, leaves


def assert_gradients_equal(case: Case, leaves: list[torch.Tensor]) -> None:
    """Relative to the largest element, as errors of sums are."""
    for leaf, reference in zip(case.leaves(), leaves, strict=True):
        assert leaf.grad is not None and reference.grad is not None
        scale = float(reference.grad.abs().max())
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=TOLERANCE, atol=TOLERANCE * scale)


# not a multiple of anything, all rows, the fewest that make a choice, and just below a multiple
@pytest.mark.parametrize("shared", [201, ROWS, 2, 127])
# one token, chunks of one, two and three (the last one short), and all tokens at once
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 1), (7, 1), (7, 2), (7, 3), (7, 7)])
def test_losses_and_gradients_equal_the_dense_formula(shared: int, tokens: int, chunk: int) -> None:
    case = Case(tokens, shared, chunk=chunk)
    expected, leaves = dense(case)
    ours = case.loss(with_diagnostics=True)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(ours, name).double(), value, rtol=TOLERANCE, atol=1e-6)
    ours.fused.sum().backward()
    expected["fused"].sum().backward()
    assert_gradients_equal(case, leaves)
    for head in case.heads:
        assert head.grad is not None and not head.grad[shared:].any()


def test_weights_of_exactly_zero_and_one() -> None:
    case = Case(4, 201, chunk=3)
    with torch.no_grad():
        case.weights.copy_(torch.eye(3)[[0, 1, 2, 1]])
    expected, leaves = dense(case)
    ours = case.loss()
    torch.testing.assert_close(ours.fused.double(), expected["fused"], rtol=TOLERANCE, atol=1e-6)
    assert torch.equal(ours.fused[0], ours.specialists[0, 0])
    ours.fused.sum().backward()
    expected["fused"].sum().backward()
    assert_gradients_equal(case, leaves)


def test_gradients_of_anything_but_the_sum_are_refused() -> None:
    case = Case(3, 201)
    with pytest.raises(RuntimeError, match="those of the sum of its losses"):
        (case.loss().fused.sum() / 3).backward()


def test_gradients_are_taken_once_and_not_kept() -> None:
    loss = Case(3, 201).loss().fused.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="can be taken once"):
        loss.backward()


def test_heads_whose_rows_do_not_mean_the_same_ids_are_refused() -> None:
    case = Case(3, 201)
    case.heads[1] = torch.zeros(2 * ROWS, SIZES[1])
    with pytest.raises(AssertionError, match="a row must mean the same id in every head"):
        case.loss()


def test_main_grad_takes_the_heads_gradients_and_adds_them_up() -> None:
    case, plain = Case(7, 201, chunk=3), Case(7, 201)
    for head in case.heads:
        head.main_grad = torch.ones(head.shape)  # type: ignore[attr-defined]
        head.grad_added_to_main_grad = False  # type: ignore[attr-defined]
    plain.loss().fused.sum().backward()
    for _ in range(2):
        case.loss().fused.sum().backward()
    for head, reference in zip(case.heads, plain.heads, strict=True):
        assert reference.grad is not None and head.grad is not None
        assert head.grad_added_to_main_grad  # type: ignore[attr-defined]
        torch.testing.assert_close(head.main_grad, 1 + 2 * reference.grad, rtol=TOLERANCE, atol=TOLERANCE)  # type: ignore[attr-defined]


def test_a_tied_head_returns_zeros_for_its_embedding_to_add_to() -> None:
    case = Case(7, 201)
    for head in case.heads:
        head.main_grad = torch.zeros(head.shape)  # type: ignore[attr-defined]
        head.zero_out_wgrad = True  # type: ignore[attr-defined]
    case.loss().fused.sum().backward()
    assert all(head.grad is not None and not head.grad.any() for head in case.heads)


def test_evaluation_leaves_main_grad_alone() -> None:
    case = Case(7, 201)
    for head in case.heads:
        head.main_grad = torch.full(head.shape, 5.0)  # type: ignore[attr-defined]
    with torch.no_grad():
        case.loss(with_diagnostics=True)
    assert all((head.main_grad == 5.0).all() for head in case.heads)  # type: ignore[attr-defined]


def test_frozen_specialists_cost_no_product_but_the_logits() -> None:
    """Warm-up: only the weights' gradient is wanted."""
    case, whole = Case(8, 201, chunk=4), Case(8, 201)
    for leaf in (*case.hidden, *case.heads):
        leaf.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        loss = case.loss().fused.sum()
        loss.backward()
    # and ⟨dz, z_k⟩ for each weight
    assert counter.get_total_flops() == 2 * 8 * 201 * (sum(SIZES) + len(SIZES))
    whole.loss().fused.sum().backward()
    assert torch.equal(case.weights.grad, whole.weights.grad)  # type: ignore[arg-type]


def test_memory_is_a_chunk_whatever_the_tokens() -> None:
    largest: dict[int, int] = {}
    for tokens in (16, 256):
        case = Case(tokens, 201, chunk=16)
        with _LargestTensor() as seen:
            case.loss().fused.sum().backward()
        largest[tokens] = seen.elements
    # K chunks of logits in one tensor; every gradient of a head or of the tokens is smaller
    assert largest[16] == largest[256] == len(SIZES) * 16 * 201


class _LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_logits_are_mixed_not_probabilities() -> None:
    """The paper's Eq. 1; a mixture of the distributions has another loss."""
    case = Case(5, 201)
    parts = dense(case)[0]["specialists"]
    of_probabilities = -torch.log((case.weights.double() * torch.exp(-parts)).sum(dim=1))
    assert (case.loss().fused.double() - of_probabilities).abs().max() > 1e-2


def test_what_is_not_asked_for_is_not_there() -> None:
    output = Case(3, 201).loss()
    assert output.uniform is None
    assert not output.weights.requires_grad and output.fused.requires_grad


def test_parts_carry_no_gradient_and_change_none() -> None:
    with_diagnostics, without = Case(4, 201), Case(4, 201)
    output = with_diagnostics.loss(with_diagnostics=True)
    assert output.specialists is not None and output.uniform is not None
    assert not output.specialists.requires_grad and not output.uniform.requires_grad
    output.fused.sum().backward()
    without.loss().fused.sum().backward()
    for first, second in zip(with_diagnostics.leaves(), without.leaves(), strict=True):
        assert torch.equal(first.grad, second.grad)  # type: ignore[arg-type]


def test_no_token_gives_zero_gradients() -> None:
    """The row of a rank that has no sample left in a step."""
    case = Case(0, 201)
    output = case.loss(with_diagnostics=True)
    assert output.fused.shape == (0,) and output.weights.shape == (0, len(SIZES))
    output.fused.sum().backward()
    for leaf in case.leaves():
        assert leaf.grad is not None and not leaf.grad.any()


def test_large_logits_do_not_overflow() -> None:
    case = Case(3, 201)
    with torch.no_grad():
        for head in case.heads:
            head *= 1e3
    assert torch.isfinite(case.loss().fused).all()
    torch.testing.assert_close(case.loss().fused.double(), dense(case)[0]["fused"], rtol=TOLERANCE, atol=1e-3)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_bfloat16_is_accumulated_in_float32(micro_batches: int) -> None:
    """A token at a time, and all tokens alike: a sum in bfloat16 would stand still at 256 of them.

    The reference starts from the same rounded inputs. Each of the roundings in between (logits, dz, w_k h_k, products,
    results) is off by 2^-9 at most, relative to what is rounded, and the logits stay below 4; the tolerance, of the
    largest element, is eight times as much. Gradients of several micro-batches are those in `main_grad`.
    """
    tolerance = 2.0**-6
    case = Case(600, 201)
    case.chunk_bytes = 1
    case.targets[2:] = 7
    common = torch.Generator().manual_seed(1)
    for k, (hidden, head) in enumerate(zip(case.hidden, case.heads, strict=True)):
        alike = torch.randn(SIZES[k], generator=common) + hidden.detach() / 4
        case.hidden[k] = alike.bfloat16().requires_grad_()
        case.heads[k] = (head.detach() / 4).bfloat16().requires_grad_()
        if micro_batches > 1:
            case.heads[k].main_grad = torch.zeros(head.shape)  # type: ignore[attr-defined]
    expected, leaves = dense(case)
    expected["fused"].sum().backward()
    for _ in range(micro_batches):
        output = case.loss(with_diagnostics=True)
        output.fused.sum().backward()
    for name, value in expected.items():
        found = getattr(output, name)
        assert found.dtype is torch.float32
        assert (found.double() - value).abs().max() <= tolerance * value.abs().max(), name
    for leaf, reference in zip(case.leaves(), leaves, strict=True):
        assert leaf.grad is not None and reference.grad is not None and leaf.grad.dtype is leaf.dtype
        gradient, wanted = getattr(leaf, "main_grad", leaf.grad).double(), micro_batches * reference.grad
        assert (gradient - wanted).abs().max() <= tolerance * wanted.abs().max(), leaf.shape
