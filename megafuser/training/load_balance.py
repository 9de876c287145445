"""The load-balance loss: c · K · Σ_k m_k², with m_k the mean weight of specialist k on the step's response tokens.

As in Switch Transformers (Fedus et al., 2021, Eq. 4) and GShard, with the gate's soft weights in place of both the
fraction of tokens and the mean probability: the gate weighs all specialists and chooses none. It is c where all
specialists have the same mean weight, K times that where one has all of it.

m_k is a mean over all rows of all ranks, and the loss is not a sum over tokens. But its gradient to one token's weight,
2 c K m_k / N, is that of the linear term 2 c K m_k w_tk, summed over the tokens and divided by their number N, as the
cross-entropy is. So a pass through the pipeline, forward only and without output heads, finds the m_k; then each row
adds its linear terms. That is exact, whatever the layout, and costs the time of one more forward.

The cross-entropy is `fusion.mixture_loss`; the two are added in `training.engine`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.training.pipeline import Model, run_pipeline


@torch.no_grad()
def mean_gate_weights(chunks: Sequence[FusedModel], rows: Sequence[PackedRow]) -> torch.Tensor:
    """The mean gate weights over the response tokens of all rows of all ranks.

    Args:
        chunks: this rank's pieces; not wrapped.
        rows: see `run_pipeline`.

    Returns:
        [K] float64, the same on every rank; zeros where there is no token.
    """

    def forward_step(row_iterator: Iterator[PackedRow], piece: Model) -> tuple[torch.Tensor, Callable[..., Any]]:
        assert isinstance(piece, FusedModel)
        row = next(row_iterator)

        def sums(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            count = torch.tensor(len(weights), dtype=torch.int, device=weights.device)
            total = torch.cat([weights.double().sum(dim=0), count.double()[None]])
            return weights.sum(), count, total[None]

        return piece.gate_weights(row) if piece.post_process else piece(row), sums

    found = run_pipeline(chunks, rows, forward_step, forward_only=True, columns=(1, len(chunks[0].names) + 1))[0]
    return found[:-1] / found[-1].clamp(min=1.0)


def load_balance(means: torch.Tensor) -> float:
    """K · Σ_k m_k² of mean weights [K]: 1 where all are equal, K where one is 1."""
    return float(len(means) * means.square().sum())


def linear_terms(means: torch.Tensor, coefficient: float) -> torch.Tensor:
    """2 c K m_k, [K] float32: what a token's weights are multiplied by; see above."""
    return (2.0 * coefficient * len(means) * means).float()
