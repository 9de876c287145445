"""The mixture loss with its vocabulary over 1, 2 and 4 ranks, against a dense formula in float64 with autograd.

Four processes go through all cases, with data parallelism where fewer ranks share a vocabulary; this file is also what
they run.
"""

import itertools
import os
import sys

import pytest
import torch
from megatron.core import parallel_state

from megafuser.config.compute import ParallelConfig
from megafuser.fusion.mixture_loss import mixture_cross_entropy
from megafuser.fusion.vocabulary_parallel import VocabularyChunk
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import detect_world
from tests.parallel.launch import run_ranks
from tests.ports import free_ports

ROWS = 512
SIZES = (16, 24, 8)
TOLERANCE = 1e-5
TENSOR = (1, 2, 4)
# all rows; none left for the last rank of four; for the last two; only two ids on the first rank; odd numbers
SHARED = (512, 384, 201, 2, 509)
TOKENS_AND_CHUNKS = ((7, 3), (7, 1), (1, 5), (0, 4))


@pytest.mark.parallel
def test_losses_and_gradients_equal_the_dense_formula_at_every_tensor_parallel_size() -> None:
    run_ranks(4, "tests.parallel.test_mixture_loss", free_ports(len(TENSOR)), timeout=300)


def check(shared: int, tokens: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(shared + tokens)
    hidden = [torch.randn(tokens, size, generator=generator, dtype=torch.float64) for size in SIZES]
    heads = [torch.randn(ROWS, size, generator=generator, dtype=torch.float64) / 2 for size in SIZES]
    weights = torch.softmax(torch.randn(tokens, len(SIZES), generator=generator, dtype=torch.float64), dim=1)
    if tokens > 2:
        weights[:2] = torch.eye(3, dtype=torch.float64)[:2]  # exactly zero and one
    targets = torch.randint(0, shared, (tokens,), generator=generator)
    targets[: tokens // 3] = shared - 1

    size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    mine = slice(ROWS // size * rank, ROWS // size * (rank + 1))
    ours = [tensor.float().requires_grad_() for tensor in (*hidden, *(head[mine] for head in heads), weights)]
    output = mixture_cross_entropy(
        ours[:3],
        ours[3:6],
        ours[6],
        targets,
        shared_vocabulary=shared,
        chunk_bytes=chunk * VocabularyChunk.bytes_per_token(ROWS // size, len(SIZES), torch.float32),
    )
    output.fused.sum().backward()

    dense = [tensor.requires_grad_() for tensor in (*hidden, *heads, weights)]
    logits = torch.stack([h @ head[:shared].T for h, head in zip(dense[:3], dense[3:6], strict=True)], dim=1)
    mixed = torch.einsum("tk,tkv->tv", dense[6], logits)
    loss = torch.nn.functional.cross_entropy(mixed, targets, reduction="none")
    loss.sum().backward()
    own = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets[:, None].expand(-1, 3), reduction="none")

    compare(output.fused, loss.detach())
    compare(output.specialists, own.detach())
    for index, (found, wanted) in enumerate(zip(ours, dense, strict=True)):
        assert found.grad is not None and wanted.grad is not None
        compare(found.grad, wanted.grad[mine] if 3 <= index < 6 else wanted.grad, wanted.grad)


def compare(found: torch.Tensor, wanted: torch.Tensor, whole: torch.Tensor | None = None) -> None:
    """Errors relative to the largest element, on whichever rank that is."""
    whole = wanted if whole is None else whole
    assert found.shape == wanted.shape
    if whole.numel():
        error = (found.double() - wanted).abs().amax() if wanted.numel() else torch.zeros(())
        assert error <= TOLERANCE * whole.abs().amax(), float(error)


def run(ports: list[str]) -> None:
    for tensor, port in zip(TENSOR, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        with distributed(ParallelConfig(tensor=tensor), seed=0, device=torch.device("cpu"), world=detect_world()):
            for shared, (tokens, chunk) in itertools.product(SHARED, TOKENS_AND_CHUNKS):
                check(shared, tokens, chunk)


if __name__ == "__main__":
    run(sys.argv[1:])
