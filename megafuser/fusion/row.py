"""What the fused model takes: one packed row (one micro-batch), as every specialist sees it.

Rows are made by `megafuser.data`; from the response positions on, the K views are aligned token by token.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from megafuser.specialist.core_attention import PackedSegments, packed_segments


@dataclass(frozen=True)
class SpecialistRow:
    """One specialist's view of a row: its own tokens, packed densely, pads at the tail only.

    Attributes:
        input_ids: [1, S_k] int64; pads are 0. Views of a row may differ in width; rows of a step do not.
        position_ids: [1, S_k] int64, from 0 in every sample.
        cu_seqlens: [segments + 1 + segments of pads] int32, from 0 to S_k; the pads' segments are the last ones.
        max_seqlen: longest segment, the pads' included.
        segments: number of samples in the row.
        used: real tokens; pads begin here.
        response_positions: [T] int64, the positions whose hidden states predict the targets.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    segments: int
    used: int
    response_positions: torch.Tensor

    def packed(self) -> PackedSegments:
        """What attention is told of the view."""
        return packed_segments(self.cu_seqlens, self.max_seqlen, self.segments)

    def to(self, device: torch.device) -> "SpecialistRow":
        """The same view on a device."""
        return _to(self, device)


@dataclass(frozen=True)
class Views:
    """A row as every specialist sees it.

    Attributes:
        specialists: the views, in the configuration's order.
    """

    specialists: tuple[SpecialistRow, ...]

    @property
    def width(self) -> int:
        """Positions S of the widest view: the pipeline's stages hand on all streams at this length."""
        return max(view.input_ids.shape[1] for view in self.specialists)


@dataclass(frozen=True)
class PackedRow(Views):
    """A row of samples: the K views and what they have in common.

    Attributes:
        targets: [T] int64, the ids of the response tokens, end ids included.
        domains: [T] int64, the domain's index of each response token.
        samples: [T] int64, the index within the row of the sample that each response token belongs to.
        references: [n, 2] (domain, sample within the domain) of the row's samples, in order.
    """

    targets: torch.Tensor
    domains: torch.Tensor
    samples: torch.Tensor
    references: np.ndarray

    def to(self, device: torch.device) -> "PackedRow":
        """The same row on a device."""
        return dataclasses.replace(_to(self, device), specialists=tuple(view.to(device) for view in self.specialists))


Row = TypeVar("Row", SpecialistRow, PackedRow)


def _to(row: Row, device: torch.device) -> Row:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)
    }
    return dataclasses.replace(row, **moved)
