"""The fused model's losses on validation rows, forward only; gradients and their buffers are never touched.

Means are made of the sums in `training.metrics`; the best loss is kept by `checkpoint.validation_record`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.training.pipeline import Model, run_pipeline, sum_by_domain

Values = Callable[[MixtureLoss, PackedRow], torch.Tensor]


@torch.no_grad()
def evaluate_rows(
    chunks: Sequence[FusedModel],
    rows: Sequence[PackedRow],
    values: Values,
    *,
    domains: int,
    columns: int,
    with_diagnostics: bool = False,
) -> torch.Tensor:
    """Adds up per-token values over all rows of all ranks.

    Args:
        chunks: this rank's pieces; not wrapped.
        rows: see `run_pipeline`.
        values: from the loss of a row to [T, columns]; called on the last stage only.
        domains: number of domains.
        columns: number of values.
        with_diagnostics: whether the uniform mixture's loss is wanted too.

    Returns:
        [domains, columns] float64, the same on every rank.
    """

    def forward_step(
        row_iterator: Iterator[PackedRow], piece: Model
    ) -> tuple[torch.Tensor | MixtureLoss, Callable[..., Any]]:
        row = next(row_iterator)

        def loss(output: MixtureLoss) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            tokens = torch.tensor(row.targets.numel(), dtype=torch.int, device=row.targets.device)
            return output.fused.sum(), tokens, sum_by_domain(values(output, row), row, domains)

        return piece(row, with_diagnostics), loss

    return run_pipeline(chunks, rows, forward_step, forward_only=True, columns=(domains, columns))
