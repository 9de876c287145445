"""Sums of per-token values sample by sample: what confidence intervals over samples are made from.

Which values they are is `report.scores`; the intervals are `report.comparison`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from megatron.core import parallel_state

from megafuser.fusion.row import PackedRow
from megafuser.training.pipeline import broadcast_from_last_stage


class SampleSums:
    """A line for each sample of each domain, filled where the samples' rows pass the last stage."""

    def __init__(self, sizes: Sequence[int], columns: int, device: torch.device) -> None:
        """Makes room for the first `sizes` samples of each domain, `columns` values each."""
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._sums = torch.zeros(int(self._starts[-1]), columns, dtype=torch.float64, device=device)

    def add(self, values: torch.Tensor, row: PackedRow) -> None:
        """Takes a row's values, [T, columns]; called on the last stage."""
        lines = self._starts[row.references[:, 0]] + row.references[:, 1]
        places = torch.as_tensor(lines, device=self._sums.device)[row.samples]
        self._sums.index_add_(0, places, values.double())

    def gather(self) -> list[np.ndarray]:
        """By domain, [samples, columns] float64 of all ranks; every rank calls it, once, and gets the same."""
        if parallel_state.is_pipeline_last_stage():
            torch.distributed.all_reduce(self._sums, group=parallel_state.get_data_parallel_group())
        broadcast_from_last_stage(self._sums)
        return np.split(self._sums.cpu().numpy(), self._starts[1:-1])
