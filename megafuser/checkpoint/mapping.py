"""How Hugging Face weights become a megatron-core weight, and back: a class for each shape that needs thought.

The tables that use them are in `megafuser.checkpoint.families`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from megafuser.specialist.card import ArchitectureCard

Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightMapping(ABC):
    """One megatron-core weight and the Hugging Face weights that it is made of.

    Attributes:
        mcore: key in the distributed checkpoint.
        sources: Hugging Face keys, `{layer}` standing for the layer's number, in the order of `to_mcore`'s arguments.
    """

    mcore: str
    sources: tuple[str, ...]

    @property
    def per_layer(self) -> bool:
        """Whether there is one such weight in each layer."""
        return "{layer}" in self.sources[0]

    @abstractmethod
    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """The shapes that the architecture implies for `sources`."""

    @abstractmethod
    def to_mcore(self, card: ArchitectureCard, *tensors: torch.Tensor) -> torch.Tensor:
        """Makes the megatron-core weight, unsplit and unpadded."""

    @abstractmethod
    def to_hf(self, card: ArchitectureCard, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Takes it apart again, into `sources`' order; the exact inverse of `to_mcore`."""


@dataclass(frozen=True)
class Plain(WeightMapping):
    """The same matrix or vector on both sides.

    Attributes:
        dimensions: for each axis, the card's quantities whose product is its size.
    """

    dimensions: tuple[tuple[str, ...], ...]

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """One shape, from `dimensions`."""
        return (tuple(math.prod(getattr(card, name) for name in axis) for axis in self.dimensions),)

    def to_mcore(self, card: ArchitectureCard, *tensors: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        (tensor,) = tensors
        return tensor

    def to_hf(self, card: ArchitectureCard, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensor itself."""
        return (tensor,)


@dataclass(frozen=True)
class VocabularyRows(WeightMapping):
    """Embedding or output head, [V, h]: stored with its true rows; padding is added where it is loaded."""

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """[V, h]."""
        return ((card.vocab_size, card.hidden_size),)

    def to_mcore(self, card: ArchitectureCard, *tensors: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        (tensor,) = tensors
        return tensor

    def to_hf(self, card: ArchitectureCard, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The true rows, without padding."""
        return (tensor[: card.vocab_size],)


@dataclass(frozen=True)
class QueryKeyValue(WeightMapping):
    """q [heads · d, h], k and v [groups · d, h] → [groups · (heads/groups + 2) · d, h], interleaved by group.

    Group g of the result has its query heads, then its key, then its value, so that tensor parallelism splits by groups
    (source: megatron-core's `SelfAttention.get_query_key_value_tensors`).
    """

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """Of q, k and v."""
        query = (card.num_attention_heads * card.kv_channels, card.hidden_size)
        key_value = (card.num_query_groups * card.kv_channels, card.hidden_size)
        return query, key_value, key_value

    def to_mcore(self, card: ArchitectureCard, *tensors: torch.Tensor) -> torch.Tensor:
        """Interleaves."""
        grouped = [tensor.unflatten(0, (card.num_query_groups, -1)) for tensor in tensors]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def to_hf(self, card: ArchitectureCard, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Takes q, k and v apart."""
        queries = card.num_attention_heads // card.num_query_groups * card.kv_channels
        grouped = tensor.unflatten(0, (card.num_query_groups, -1))
        parts = grouped.split([queries, card.kv_channels, card.kv_channels], dim=1)
        return tuple(part.flatten(0, 1) for part in parts)


@dataclass(frozen=True)
class GatedMlp(WeightMapping):
    """gate and up, [f, h] each → [2f, h], the gate first (source: megatron-core's `MLP` with `gated_linear_unit`)."""

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """[f, h] twice."""
        shape = (card.ffn_hidden_size, card.hidden_size)
        return shape, shape

    def to_mcore(self, card: ArchitectureCard, *tensors: torch.Tensor) -> torch.Tensor:
        """Stacks."""
        return torch.cat(tensors)

    def to_hf(self, card: ArchitectureCard, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Takes gate and up apart."""
        return tensor.chunk(2)
