"""What a forward leaves for its backward, tensor by tensor: the table to mend when layers save something else.

Symbols: S width of the row, s = S / TP under sequence parallelism (else S), h hidden size, q query width / TP, kv key
width / TP, f MLP width / TP, d width of a head, e bytes of an element.

Gate and loss are `planning.output_head`, weights and optimizer states `planning.memory`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.planning.memory import ELEMENT_BYTES
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.pipeline_split import layers_per_chunk

_FLOAT32, _INDEX = 4, 8


@dataclass(frozen=True)
class Saved:
    """One tensor that the backward of a layer needs.

    Attributes:
        name: what it is.
        bytes: of one micro-batch on one rank.
        in_core_attention: whether selective recompute makes it again.
    """

    name: str
    bytes: float
    in_core_attention: bool = False


@dataclass(frozen=True)
class Row:
    """One micro-batch.

    Attributes:
        width: its positions, S.
        used: real tokens of each specialist's view.
        response_tokens: positions that meet gate and heads, T.
        longest: tokens of the longest sample, the pads included.
    """

    width: int
    used: float
    response_tokens: float
    longest: float


@dataclass(frozen=True)
class Setting:
    """What, beside the architecture, decides how large activations are.

    Attributes:
        parallel: the layout.
        precision: number formats.
        memory: what is computed again.
        backend: `torch` or `transformer_engine`.
    """

    parallel: ParallelConfig
    precision: PrecisionConfig
    memory: MemoryConfig
    backend: str

    @property
    def element(self) -> int:
        """Bytes of an element, e."""
        return ELEMENT_BYTES[self.precision.dtype]

    def kept_width(self, width: int) -> float:
        """Positions outside attention and MLP on one rank, s."""
        return width / self.parallel.tensor if self.parallel.sequence else width


def layer_tensors(card: ArchitectureCard, row: Row, setting: Setting) -> list[Saved]:
    """What one layer saves without recompute, from its input to what its last product reads."""
    return (_fused_layer if setting.backend == "transformer_engine" else _torch_layer)(card, row, setting)


def _norm(name: str, vectors: float, width: int, element: int, with_input: bool = True) -> list[Saved]:
    """An RMSNorm keeps its input, unless something else keeps it anyway, and 1 / rms in float32."""
    kept = [Saved(f"{name}: input", element * vectors * width)] if with_input else []
    return [*kept, Saved(f"{name}: 1 / rms", _FLOAT32 * vectors)]


def _torch_layer(card: ArchitectureCard, row: Row, setting: Setting) -> list[Saved]:
    """The layers of `megafuser.specialist`, in which core attention turns queries and keys itself."""
    tensor, e, wide, s = setting.parallel.tensor, setting.element, row.width, setting.kept_width(row.width)
    heads, groups = card.num_attention_heads / tensor, max(1.0, card.num_query_groups / tensor)
    h, d, f = card.hidden_size, card.kv_channels, card.ffn_hidden_size / tensor
    q, kv = heads * d, groups * d
    # Queries and keys are parts of the qkv product's output, unless queries of several groups are brought together.
    copied = heads > groups > 1
    qk_norms: list[Saved] = []
    if card.qk_norm:
        qk_norms += _norm("query norm", wide * heads, d, e, with_input=copied)
        qk_norms += _norm("key norm", wide * groups, d, e, with_input=False)
    return [
        *_norm("input norm", s, h, e),
        Saved("qkv product: input", e * s * h),
        *qk_norms,
        Saved("qkv product: output, of which the values are a part", e * wide * (q + 2 * kv)),
        Saved("core attention: turned queries", e * wide * q, in_core_attention=True),
        Saved("core attention: turned keys", e * wide * kv, in_core_attention=True),
        Saved("core attention: output of the segments", e * row.used * q, in_core_attention=True),
        Saved("core attention: log-sum-exp", _FLOAT32 * row.used * heads, in_core_attention=True),
        Saved("attention's projection: input", e * wide * q),
        *_norm("MLP norm", s, h, e),
        Saved("MLP: input", e * s * h),
        Saved("MLP: both halves of the first product", 2 * e * wide * f),
        Saved("MLP: input of the second product", e * wide * f),
    ]


def _core_inputs(card: ArchitectureCard, row: Row, setting: Setting) -> float:
    """What selective recompute keeps for the core attention of one layer of the torch backend, beside the values."""
    heads = card.num_attention_heads / setting.parallel.tensor
    groups = max(1.0, card.num_query_groups / setting.parallel.tensor)
    vectors = heads + groups if card.qk_norm else heads * (heads > groups > 1)
    return setting.element * row.width * vectors * card.kv_channels


def _fused_layer(card: ArchitectureCard, row: Row, setting: Setting) -> list[Saved]:
    """Transformer Engine 2.11: norms are fused with products, inputs of FP8 products are kept in FP8."""
    tensor, e, wide, s = setting.parallel.tensor, setting.element, row.width, setting.kept_width(row.width)
    heads, groups = card.num_attention_heads / tensor, max(1.0, card.num_query_groups / tensor)
    h, f = card.hidden_size, card.ffn_hidden_size / tensor
    q, kv = heads * card.kv_channels, groups * card.kv_channels
    product = 1 if setting.precision.fp8 else e
    qk_norms = [Saved("query and key norms: inputs", e * wide * (q + kv))] if card.qk_norm else []
    return [
        *_norm("input norm", s, h, e),
        Saved("qkv product: input", product * s * h),
        *qk_norms,
        Saved("qkv product: output, of which the values are a part", e * wide * (q + 2 * kv)),
        Saved("attention: queries", e * wide * q),
        Saved("attention: keys", e * wide * kv),
        Saved("attention: output", e * wide * q),
        Saved("attention: log-sum-exp", _FLOAT32 * wide * heads, in_core_attention=True),
        *([Saved("attention's projection: input in FP8", wide * q)] if setting.precision.fp8 else []),
        *_norm("MLP norm", s, h, e),
        Saved("MLP: input", product * s * h),
        Saved("MLP: gate and linear halves", 2 * e * wide * f),
        Saved("MLP: input of the second product", product * wide * f),
    ]


def chunk_saved(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting, chunk: int) -> float:
    """Bytes that one micro-batch leaves in one chunk of all specialists, head and gate excluded."""
    total = 0.0
    chunks = setting.parallel.pipeline * setting.parallel.virtual_pipeline
    for card in cards.values():
        layers = layers_per_chunk(card.num_layers, setting.parallel)[chunk]
        total += block_saved(card, row, setting, layers)
        if chunk == 0 and setting.parallel.tensor > 1:
            total += (_INDEX + 1) * row.width  # which ids are this rank's, and where; one rank takes the row's own
        if chunk == chunks - 1:
            norm = _norm("final norm", setting.kept_width(row.width), card.hidden_size, setting.element)
            total += sum(tensor.bytes for tensor in norm)
    return total


def block_saved(card: ArchitectureCard, row: Row, setting: Setting, layers: int) -> float:
    """Bytes that one micro-batch leaves in consecutive layers of a specialist."""
    if layers == 0:
        return 0.0
    tensors = layer_tensors(card, row, setting)
    if setting.memory.recompute == "full":
        groups = -(-layers // setting.memory.recompute_layers)
        inputs = setting.element * setting.kept_width(row.width) * card.hidden_size
        return groups * inputs + _FLOAT32 * row.longest * card.kv_channels  # RoPE's angles, which all layers share
    # RoPE's cosines and sines, which all layers share
    shared = setting.element * row.width * card.kv_channels if setting.backend == "torch" else 0
    if setting.memory.recompute == "none":
        return shared + layers * sum(tensor.bytes for tensor in tensors)
    kept = sum(tensor.bytes for tensor in tensors if not tensor.in_core_attention)
    return layers * (kept + (_core_inputs(card, row, setting) if setting.backend == "torch" else 0.0))


def recomputed(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting) -> float:
    """Most bytes that recompute brings back at once: one group of layers, or one layer's core attention."""
    if setting.memory.recompute == "none":
        return 0.0
    found = []
    for card in cards.values():
        tensors = layer_tensors(card, row, setting)
        if setting.memory.recompute == "full":
            found.append(setting.memory.recompute_layers * sum(tensor.bytes for tensor in tensors))
        else:
            found.append(sum(tensor.bytes for tensor in tensors if tensor.in_core_attention))
    return max(found, default=0.0)
