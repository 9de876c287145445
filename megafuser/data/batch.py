"""One packed row as tensors: what one microbatch of training, validation or a report reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megafuser.data.tokenized import TokenizedDomain


@dataclass(frozen=True)
class SpecialistRow:
    """One specialist's view of a packed row.

    Attributes:
        input_ids: `[1, S]` int64; pads are 0, at the tail only.
        position_ids: `[1, S]` int64, from 0 in each sample and in the tail.
        cu_seqlens: `[segments + 1]` int32 from 0 to S; the tail of pads, if any, is the last segment.
        max_seqlen: length of the longest segment.
        used: number of real positions; the pads begin here.
        response_positions: `[T]` int64, the positions whose hidden state predicts the targets.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    used: int
    response_positions: Tensor

    def to(self, device: torch.device | str) -> "SpecialistRow":
        """The same row on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            response_positions=self.response_positions.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class PackedRow:
    """A microbatch: the same samples in the same order for every specialist, aligned at the T response tokens.

    Attributes:
        specialists: K views.
        targets: `[T]` int64, response ids, the end id of each turn included.
        domains: `[T]` int64, domain index of each response token.
        samples: `[T]` int64, the place in `references` of each response token's sample.
        references: `[n, 2]` int64 of (domain index, sample index), in row order; stays on the host.
        tokens: sum over the samples of the longest of their K views.
    """

    specialists: tuple[SpecialistRow, ...]
    targets: Tensor
    domains: Tensor
    samples: Tensor
    references: np.ndarray
    tokens: int

    def to(self, device: torch.device | str) -> "PackedRow":
        """The same row on `device`."""
        return replace(
            self,
            specialists=tuple(specialist.to(device) for specialist in self.specialists),
            targets=self.targets.to(device, non_blocking=True),
            domains=self.domains.to(device, non_blocking=True),
            samples=self.samples.to(device, non_blocking=True),
        )


def build_row(domains: Sequence[TokenizedDomain], references: np.ndarray, width: int) -> PackedRow:
    """Builds the tensors of one row; without samples it is all pads and has no response tokens (T = 0).

    Args:
        domains: the domains in configuration order, all with the same K specialists.
        references: `[n, 2]` of (domain index, sample index), which fit the width in every view.
        width: positions of the row, S.
    """
    references = np.asarray(references, dtype=np.int64).reshape(-1, 2)
    chosen = [(domains[domain], int(sample)) for domain, sample in references]
    counts = np.array([domain.response_lengths[sample] for domain, sample in chosen], dtype=np.int64)
    targets = [domain.targets(sample) for domain, sample in chosen]
    longest = [int(domain.lengths[sample].max()) for domain, sample in chosen]
    specialist_count = domains[0].lengths.shape[1]
    return PackedRow(
        specialists=tuple(
            _specialist_row([domain.view(sample, specialist) for domain, sample in chosen], width)
            for specialist in range(specialist_count)
        ),
        targets=_concatenate(targets),
        domains=torch.from_numpy(np.repeat(references[:, 0], counts)),
        samples=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts)),
        references=references,
        tokens=sum(longest),
    )


def _specialist_row(views: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> SpecialistRow:
    """Lays (input ids, predicting positions) of the samples side by side and pads the tail."""
    lengths = [len(ids) for ids, _ in views]
    used = sum(lengths)
    if used > width:
        raise ValueError(f"the samples of a row have {used} positions, a row has {width}")
    segments = lengths if used == width else [*lengths, width - used]
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
        used=used,
        response_positions=_concatenate(positions),
    )


def _concatenate(arrays: Sequence[np.ndarray]) -> Tensor:
    """One int64 tensor of all arrays, empty if there are none."""
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *arrays]).astype(np.int64))
