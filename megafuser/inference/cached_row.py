"""A row of new tokens whose earlier ones are in the cache: what one step puts through the pipeline.

Each sequence of the step has a segment in the row, of a few tokens while its prompt is read and of one token after
that; lengths differ from sequence to sequence and from specialist to specialist. The model's code is training's: only
what attention is told differs. Which sequences share a step is decided by `inference.scheduler` and
`inference.scoring`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megafuser.fusion.row import SpecialistRow, Views
from megafuser.inference.cache import KeyValuePool
from megafuser.specialist.core_attention import PackedSegments


@dataclass(frozen=True)
class Segment:
    """One sequence's part in a row, as one specialist sees it.

    Attributes:
        start: where its extent begins in the pool.
        past: positions that are cached already.
        ids: the new tokens, maybe none.
        outputs: how many of the last new positions are to predict a token.
    """

    start: int
    past: int
    ids: Sequence[int]
    outputs: int


@dataclass
class CachedSegments(PackedSegments):
    """What attention is told: where each segment's earlier keys are, and where its new ones go.

    Attributes:
        pool: the specialist's.
        extents: (first position in the row, new tokens, start in the pool, cached positions) of each segment.
        places: [S] int64, where in the pool each token's key and value go; pads have none.
        at: [S] int64, position of each token in its sequence, pads included.
        gathers: attend to all single tokens at once, by copying their keys together. It costs the copy and saves a
            kernel for each sequence and layer, which is what a GPU waits for.
    """

    pool: KeyValuePool | None = None
    extents: tuple[tuple[int, int, int, int], ...] = ()
    places: torch.Tensor | None = None
    at: torch.Tensor | None = None
    gathers: bool = False
    _masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    _together: "_Together | None" = None

    def positions(self) -> torch.Tensor:
        """See `PackedSegments`."""
        assert self.at is not None
        return self.at

    def attend(
        self, layer_number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Writes the new keys and values, and attends to all up to each query's own. See `PackedSegments`."""
        assert self.pool is not None and self.places is not None
        keys, values, used = self.pool.keys[layer_number], self.pool.values[layer_number], len(self.places)
        keys.index_copy_(0, self.places, key[:used])
        values.index_copy_(0, self.places, value[:used])
        out = torch.zeros_like(query) if used < len(query) else torch.empty_like(query)
        rest = self.extents
        if self.gathers:
            if self._together is None:
                self._together = _Together.of(self.extents, query.device)
            rest = tuple(extent for extent in self.extents if extent[1] != 1)
            if len(self._together.rows):
                out[self._together.rows] = self._together.attend(query, keys, values, scale)
        for first, new, start, past in rest:
            own = slice(start, start + past + new)
            out[first : first + new] = self._segment(query[first : first + new], keys[own], values[own], past, scale)
        return out

    def _segment(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int, scale: float | None
    ) -> torch.Tensor:
        """One segment's queries [n, heads, d] on all of its keys [past + n, groups, d]."""
        new, heads, channels = query.shape
        k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        if new == 1:
            # The queries of a group are as many queries on the same keys: no key is repeated, and none is ahead.
            q = query.view(1, keys.shape[1], -1, channels)
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
            return found.reshape(1, heads, channels)
        mask = None
        if past:
            if (past, new) not in self._masks:
                everything = torch.ones(new, past + new, dtype=torch.bool, device=query.device)
                self._masks[past, new] = everything.tril_(past)
            mask = self._masks[past, new]
        found = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=heads != keys.shape[1],
        )
        return found[0].transpose(0, 1)


@dataclass(frozen=True)
class _Together:
    """The segments of one token, for a single call.

    Attributes:
        rows: [n] int64, their positions in the row.
        places: [n, L] int64, where in the pool their keys are; beyond a sequence's end, any place.
        mask: [n, 1, 1, L] bool, which of these are keys.
    """

    rows: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, extents: Sequence[tuple[int, int, int, int]], device: torch.device) -> "_Together":
        single = [extent for extent in extents if extent[1] == 1]
        table = torch.tensor(single, dtype=torch.int64).reshape(-1, 4).to(device)
        first, _, start, past = table.unbind(1)
        length = max((extent[3] + 1 for extent in single), default=0)
        steps = torch.arange(length, device=device)
        mask = steps <= past[:, None]
        return cls(first, torch.where(mask, start[:, None] + steps, start[:, None]), mask[:, None, None])

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """[n, heads, d]."""
        k, v = keys[self.places].transpose(1, 2), values[self.places].transpose(1, 2)
        own = query[self.rows]
        q = own.view(len(own), k.shape[1], -1, own.shape[-1])
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=scale)
        return found.reshape(own.shape)


@dataclass(frozen=True)
class CachedView(SpecialistRow):
    """One specialist's view of a step's row.

    Attributes:
        described: what attention is told.
    """

    described: CachedSegments

    def packed(self) -> PackedSegments:
        """See `SpecialistRow`."""
        return self.described


def cached_view(segments: Sequence[Segment], pool: KeyValuePool, limit: int, device: torch.device) -> CachedView:
    """Puts a step's segments into a row.

    Args:
        segments: of one specialist, in the step's order.
        pool: the specialist's.
        limit: positions of the longest possible sequence. RoPE's table has this length whatever the step is, so that it
            is made once.
        device: where the model is.
    """
    ids: list[int] = []
    places: list[int] = []
    at: list[int] = []
    outputs: list[int] = []
    extents: list[tuple[int, int, int, int]] = []
    for segment in segments:
        first, new = len(ids), len(segment.ids)
        if segment.outputs > new:
            raise ValueError(f"{segment.outputs} predictions of {new} new positions")
        if not new:
            continue
        ids += segment.ids
        at += range(segment.past, segment.past + new)
        places += range(segment.start + segment.past, segment.start + segment.past + new)
        outputs += range(first + new - segment.outputs, first + new)
        extents.append((first, new, segment.start, segment.past))
    used = len(ids)
    if not used:  # a pipeline's stages do not hand on nothing
        ids, at = [0], [0]
    numbers = torch.tensor([ids, at], dtype=torch.int64).to(device)
    boundaries = torch.tensor([0, len(ids)], dtype=torch.int32, device=device)
    described = CachedSegments(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=limit,
        max_seqlen_kv=limit,
        segments=len(extents),
        pool=pool,
        extents=tuple(extents),
        places=torch.tensor(places, dtype=torch.int64).to(device),
        at=numbers[1],
        gathers=device.type == "cuda",
    )
    return CachedView(
        input_ids=numbers[:1],
        position_ids=numbers[1:],
        cu_seqlens=boundaries,
        max_seqlen=limit,
        segments=len(extents),
        used=used,
        response_positions=torch.tensor(outputs, dtype=torch.int64).to(device),
        described=described,
    )


def cached_row(
    segments: Sequence[Sequence[Segment]], pools: Sequence[KeyValuePool], limit: int, device: torch.device
) -> Views:
    """A step's row: `segments` by specialist, and for the rest see `cached_view`."""
    return Views(tuple(cached_view(own, pool, limit, device) for own, pool in zip(segments, pools, strict=True)))
