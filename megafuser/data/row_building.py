"""Builds one packed row: what one microbatch of training, validation or a report reads.

Which samples share it is `data.packing`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.row import PackedRow, SpecialistRow

_PAD_SEGMENT = 64


def build_row(domains: Sequence[TokenizedDomain], references: np.ndarray, widths: int | Sequence[int]) -> PackedRow:
    """Builds the tensors of one row; without samples it is all pads and has no response tokens (T = 0).

    Args:
        domains: the domains in configuration order, all with the same K specialists.
        references: `[n, 2]` of (domain index, sample index), which fit the width in every view.
        widths: positions S_k of each specialist's view, or one number for all.
    """
    references = np.asarray(references, dtype=np.int64).reshape(-1, 2)
    chosen = [(domains[domain], int(sample)) for domain, sample in references]
    counts = np.array([domain.response_lengths[sample] for domain, sample in chosen], dtype=np.int64)
    targets = [domain.targets(sample) for domain, sample in chosen]
    specialist_count = domains[0].lengths.shape[1]
    if isinstance(widths, int):
        widths = [widths] * specialist_count
    return PackedRow(
        specialists=tuple(
            _specialist_row([domain.view(sample, specialist) for domain, sample in chosen], width)
            for specialist, width in enumerate(widths)
        ),
        targets=_concatenate(targets),
        domains=torch.from_numpy(np.repeat(references[:, 0], counts)),
        samples=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts)),
        references=references,
    )


def _specialist_row(views: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> SpecialistRow:
    """Lays (input ids, predicting positions) of the samples side by side and pads the tail."""
    lengths = [len(ids) for ids, _ in views]
    used = sum(lengths)
    if used > width:
        raise ValueError(f"the samples of a row have {used} positions, a row has {width}")
    segments = [*lengths, *_pad_segments(width - used)]
    bounds = np.concatenate([[0], np.cumsum(segments)]).astype(np.int64)
    ids = np.zeros(width, dtype=np.int64)
    for start, (view, _) in zip(bounds, views, strict=False):
        ids[start : start + len(view)] = view
    positions = [positions + start for start, (_, positions) in zip(bounds, views, strict=False)]
    return SpecialistRow(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(np.arange(width) - np.repeat(bounds[:-1], segments))[None],
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        max_seqlen=max(segments),
        segments=len(lengths),
        used=used,
        response_positions=_concatenate(positions),
    )


def _pad_segments(pads: int) -> list[int]:
    """Short segments for the pads: packed attention on a GPU works on them as on any, and one costs its square."""
    whole, rest = divmod(pads, _PAD_SEGMENT)
    return [_PAD_SEGMENT] * whole + [rest] * (rest > 0)


def _concatenate(arrays: Sequence[np.ndarray]) -> Tensor:
    """One int64 tensor of all arrays, empty if there are none."""
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *arrays]).astype(np.int64))
