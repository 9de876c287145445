"""Packed causal attention for the `torch` backend: no attention matrix, no work across samples.

Where queries find their keys is the row's to know: within its segments here, in a cache where responses are generated
(`megafuser.inference.cached_row`).
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig

from megafuser.specialist.rotary import rotate


@dataclass
class PackedSegments(PackedSeqParams):
    """megatron-core's description of a packed row whose pads, if any, are the last segments of `cu_seqlens_q`.

    Attributes:
        segments: number of real segments.
        rotation: cosines and sines of the row's positions, see `turn_by`; None leaves queries and keys as they are.
    """

    segments: int = 0
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None

    def turn_by(self, angles: torch.Tensor, dtype: torch.dtype) -> None:
        """Makes the rotation, [S, 1, d / 2] cosines and sines, once for all layers that see this row.

        Args:
            angles: megatron-core's table, [longest segment or more, 1, 1, d], the second half of d like the first.
            dtype: of the queries and keys.
        """
        if self.rotation is None:
            own = angles[self.positions(), 0, :, : angles.shape[-1] // 2]
            self.rotation = own.cos().to(dtype), own.sin().to(dtype)

    def positions(self) -> torch.Tensor:
        """Of each token in its sequence, [S] int64."""
        starts = self.cu_seqlens_q[:-1].long()
        lengths = self.cu_seqlens_q.diff().long()
        rows = torch.arange(int(lengths.sum()), device=starts.device)
        positions: torch.Tensor = rows - starts.repeat_interleave(lengths)
        return positions

    def attend(
        self, layer_number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Causal attention within each segment, by PyTorch's SDPA.

        Positions after the last real segment are pads: no work, and zeros rather than uninitialized memory, since
        0 · NaN would reach the weights. Each segment is a call of its own, so the work grows with the sum of their
        squares; calls are few, since a row holds a handful of samples.

        Args:
            layer_number: which of the specialist's layers this is.
            query: [S, heads, d], turned by its position.
            key: [S, groups, d], too.
            value: [S, groups, d].
            scale: of the products; None for 1 / √d.

        Returns:
            [S, heads, d].
        """
        boundaries = self.cu_seqlens_q[: self.segments + 1].tolist()
        parts = []
        for start, end in itertools.pairwise(boundaries):
            q, k, v = (tensor[start:end].transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            )
            parts.append(out.squeeze(0).transpose(0, 1))
        zeros = query.new_zeros(query.shape[0] - boundaries[-1], *query.shape[1:])
        if not parts:
            # An empty row still gives every weight a gradient, of zeros: a reduction that overlaps with the backward
            # waits for all of them.
            zeros = zeros + sum(tensor[:0].sum() for tensor in (query, key, value))
        parts.append(zeros)
        return torch.cat(parts)


def packed_segments(cu_seqlens: torch.Tensor, max_seqlen: int, segments: int) -> PackedSegments:
    """Describes a packed row.

    Args:
        cu_seqlens: int32 boundaries from 0 to the row's width, since rotary embedding splits the whole row by them.
        max_seqlen: the longest segment, hence never the row's width unless the row is one segment: with a table as long
            as the row, megatron-core's packed RoPE stops restarting at segments, silently.
        segments: number of real segments; the others are pads.
    """
    return PackedSegments(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
        segments=segments,
    )


class SegmentAttention(torch.nn.Module):
    """Core attention of a packed row, which turns queries and keys and leaves the rest to the row's description.

    Takes the place of megatron-core's `DotProductAttention`, which materializes the matrix and refuses packed rows.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, **_: Any) -> None:
        """Takes the arguments of megatron-core's core attention; only the scale and the layer's number matter here."""
        super().__init__()
        self.scale = config.softmax_scale
        self.layer_number = layer_number

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSegments | None = None,
    ) -> torch.Tensor:
        """Attends within segments.

        Args:
            query: [S, heads, d] of one packed row.
            key: [S, groups, d].
            value: [S, groups, d].
            attention_mask: unused; the segments are the mask.
            attn_mask_type: unused; attention is causal.
            attention_bias: unused; the supported families have none.
            packed_seq_params: where the segments begin; required.

        Returns:
            [S, heads · d].
        """
        if packed_seq_params is None:
            raise ValueError("the torch backend attends packed rows only; pass packed_seq_params")
        if packed_seq_params.rotation is not None:
            query, key = (rotate(tensor, *packed_seq_params.rotation) for tensor in (query, key))
        return packed_seq_params.attend(self.layer_number, query, key, value, self.scale).flatten(1)
