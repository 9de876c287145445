"""How Hugging Face weights become a megatron-core weight, and back: a class for each shape that needs thought.

Every megatron-core weight is the rows (axis 0) of its sources in another order, so a mapping says which rows follow one
another, and nothing else: whoever moves the rows needs no more than a block of them in memory, in either direction.
The tables that use the classes are in `megafuser.families.known`; a shape that one family alone has is a class there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from megafuser.specialist.card import ArchitectureCard

Shape = tuple[int, ...]
Axes = tuple[tuple[str, ...], ...]
"""For each axis, the card's quantities whose product is its size."""


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of one source; in the target they follow the rows of the range before."""

    source: int
    start: int
    stop: int


@dataclass(frozen=True)
class WeightMapping(ABC):
    """One megatron-core weight and the Hugging Face weights that it is made of.

    Attributes:
        mcore: key in the distributed checkpoint.
        sources: Hugging Face keys, `{layer}` standing for the layer's number.
        when: the card's flag that says whether there is such a weight; None where there always is.
        padded: whether a model has more rows than the weight, zeros behind the last one.
    """

    padded: ClassVar[bool] = False

    mcore: str
    sources: tuple[str, ...]
    when: str | None = field(default=None, kw_only=True)

    @property
    def per_layer(self) -> bool:
        """Whether there is one such weight in each layer."""
        return "{layer}" in self.sources[0]

    def exists(self, card: ArchitectureCard) -> bool:
        """Whether the architecture has this weight."""
        return self.when is None or bool(getattr(card, self.when))

    @abstractmethod
    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """The shapes that the architecture implies for `sources`."""

    @abstractmethod
    def row_ranges(self, card: ArchitectureCard) -> Iterator[RowRange]:
        """The rows of the target in order; each row of each source occurs once."""

    def shape(self, card: ArchitectureCard) -> Shape:
        """The target's shape, unsplit and unpadded."""
        shapes = self.source_shapes(card)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True)
class Plain(WeightMapping):
    """The same matrix or vector on both sides.

    Attributes:
        axes: its shape.
    """

    axes: Axes

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """One shape, from `axes`."""
        return (_sizes(self.axes, card),)

    def row_ranges(self, card: ArchitectureCard) -> Iterator[RowRange]:
        """All rows."""
        yield RowRange(0, 0, self.shape(card)[0])


@dataclass(frozen=True)
class VocabularyRows(WeightMapping):
    """Embedding or output head, [V, h]: stored with its true rows; padding is added where it is loaded."""

    padded = True

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """[V, h]."""
        return ((card.vocab_size, card.hidden_size),)

    def row_ranges(self, card: ArchitectureCard) -> Iterator[RowRange]:
        """The true rows, without padding."""
        yield RowRange(0, 0, card.vocab_size)


@dataclass(frozen=True)
class QueryKeyValue(WeightMapping):
    """q [heads · d, …], k and v [groups · d, …] → [groups · (heads/groups + 2) · d, …], interleaved by group.

    Group g of the result has its query heads, then its key, then its value, so that tensor parallelism splits by groups
    (source: megatron-core's `SelfAttention.get_query_key_value_tensors`).

    Attributes:
        columns: the axes behind the rows; none for biases.
    """

    columns: Axes = (("hidden_size",),)

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """Of q, k and v."""
        columns = _sizes(self.columns, card)
        key_value = (card.num_query_groups * card.kv_channels, *columns)
        return (card.num_attention_heads * card.kv_channels, *columns), key_value, key_value

    def row_ranges(self, card: ArchitectureCard) -> Iterator[RowRange]:
        """Group by group."""
        width = card.kv_channels
        queries = card.num_attention_heads // card.num_query_groups * width
        for group in range(card.num_query_groups):
            yield RowRange(0, group * queries, (group + 1) * queries)
            yield RowRange(1, group * width, (group + 1) * width)
            yield RowRange(2, group * width, (group + 1) * width)


@dataclass(frozen=True)
class GatedMlp(WeightMapping):
    """gate and up, [f, …] each → [2f, …], the gate first (source: megatron-core's `MLP` with `gated_linear_unit`).

    Attributes:
        columns: the axes behind the rows; none for biases.
    """

    columns: Axes = (("hidden_size",),)

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """[f, …] twice."""
        shape = (card.ffn_hidden_size, *_sizes(self.columns, card))
        return shape, shape

    def row_ranges(self, card: ArchitectureCard) -> Iterator[RowRange]:
        """Gate, then up."""
        yield RowRange(0, 0, card.ffn_hidden_size)
        yield RowRange(1, 0, card.ffn_hidden_size)


def _sizes(axes: Axes, card: ArchitectureCard) -> Shape:
    return tuple(math.prod(getattr(card, name) for name in axis) for axis in axes)
