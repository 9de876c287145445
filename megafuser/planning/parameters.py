"""Every parameter of every rank, by name and shape, in the order in which the built model lists them.

Their bytes are `planning.memory`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from megafuser.config.compute import ParallelConfig
from megafuser.fusion.gate_shapes import gate_shapes
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.padded_vocabulary import padded_vocab_size
from megafuser.specialist.pipeline_split import layers_per_chunk


@dataclass(frozen=True)
class Parameter:
    """One parameter of one tensor-parallel rank.

    Attributes:
        name: as `FusedModel.named_parameters` says.
        shape: on this rank.
        is_gate: whether it is the gate's; the others are the specialists'.
        is_shared_embedding: one of the two copies of a tied embedding, which megatron-core gives a bucket of its own.
    """

    name: str
    shape: tuple[int, ...]
    is_gate: bool = False
    is_shared_embedding: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def chunk_parameters(
    cards: Mapping[str, ArchitectureCard], parallel: ParallelConfig, gate_hidden_size: int, chunk: int
) -> list[Parameter]:
    """The parameters of one of the pipeline · virtual_pipeline chunks; equal on all its tensor-parallel ranks.

    Args:
        cards: the specialists, in order.
        parallel: the layout.
        gate_hidden_size: units of the gate.
        chunk: in pipeline order: virtual stage chunk // pipeline of pipeline rank chunk % pipeline.
    """
    last = chunk == parallel.pipeline * parallel.virtual_pipeline - 1
    rows = padded_rows(cards, parallel.tensor) // parallel.tensor
    found = []
    for index, card in enumerate(cards.values()):
        found += _specialist(f"specialists.{index}.", card, parallel, chunk, rows)
    return found + (_gate(cards, gate_hidden_size) if last else [])


def padded_rows(cards: Mapping[str, ArchitectureCard], tensor: int) -> int:
    """Rows of every embedding and head over all ranks: the largest vocabulary, padded."""
    return max(padded_vocab_size(card.vocab_size, tensor) for card in cards.values())


def rank_chunks(parallel: ParallelConfig, rank: int) -> list[int]:
    """The chunks of a pipeline rank, in order of its virtual stages."""
    return [stage * parallel.pipeline + rank for stage in range(parallel.virtual_pipeline)]


def _specialist(
    prefix: str, card: ArchitectureCard, parallel: ParallelConfig, chunk: int, rows: int
) -> list[Parameter]:
    chunks = parallel.pipeline * parallel.virtual_pipeline
    first, last, h = chunk == 0, chunk == chunks - 1, card.hidden_size
    shared = card.tie_word_embeddings and chunks > 1
    found = []
    if first:
        found.append(Parameter(f"{prefix}embedding.word_embeddings.weight", (rows, h), is_shared_embedding=shared))
    for layer in range(layers_per_chunk(card.num_layers, parallel)[chunk]):
        found += _layer(f"{prefix}decoder.layers.{layer}.", card, parallel.tensor)
    if last:
        found.append(Parameter(f"{prefix}decoder.final_layernorm.weight", (h,)))
    if last and not (first and card.tie_word_embeddings):
        found.append(Parameter(f"{prefix}output_layer.weight", (rows, h), is_shared_embedding=shared))
    return found


def _layer(prefix: str, card: ArchitectureCard, tensor: int) -> list[Parameter]:
    h, ffn = card.hidden_size, card.ffn_hidden_size // tensor
    queries, qkv = card.query_width // tensor, card.qkv_width // tensor
    shapes: list[tuple[str, tuple[int, ...], bool]] = [
        ("input_layernorm.weight", (h,), True),
        ("self_attention.linear_proj.weight", (h, queries), True),
        ("self_attention.linear_proj.bias", (h,), card.attention_output_bias),
        ("self_attention.linear_qkv.weight", (qkv, h), True),
        ("self_attention.linear_qkv.bias", (qkv,), card.qkv_bias),
        ("self_attention.q_layernorm.weight", (card.kv_channels,), card.qk_norm),
        ("self_attention.k_layernorm.weight", (card.kv_channels,), card.qk_norm),
        ("pre_mlp_layernorm.weight", (h,), True),
        ("mlp.linear_fc1.weight", (2 * ffn, h), True),
        ("mlp.linear_fc1.bias", (2 * ffn,), card.mlp_bias),
        ("mlp.linear_fc2.weight", (h, ffn), True),
        ("mlp.linear_fc2.bias", (h,), card.mlp_bias),
    ]
    return [Parameter(prefix + name, shape) for name, shape, is_there in shapes if is_there]


def _gate(cards: Mapping[str, ArchitectureCard], units: int) -> list[Parameter]:
    shapes = gate_shapes([card.hidden_size for card in cards.values()], units)
    return [Parameter(f"gate.{name}", shape, is_gate=True) for name, shape in shapes.items()]
