"""The architecture card: all that must be known of a specialist to build it, in a small frozen dataclass.

A converted checkpoint carries its card in the manifest, so that nothing later needs the Hugging Face configuration.
Making one of a config.json is `families.config_json`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from megafuser.errors import UserError


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are stretched beyond the context of pretraining; see `megafuser.specialist.rotary`.

    Attributes:
        kind: `linear` or `llama3`.
        factor: what frequencies are divided by.
        low_freq_factor: `llama3`: the original context holds fewer turns than this of frequencies that are divided.
        high_freq_factor: `llama3`: and more turns than this of those that stay; in between, a mean of both.
        original_max_position_embeddings: `llama3`: the original context, in tokens.
    """

    kind: str
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


@dataclass(frozen=True)
class ArchitectureCard:
    """A decoder-only transformer's shape, in megatron-core's names.

    Attributes:
        family: one of `megafuser.families.known`, whose table says which weights there are.
        num_layers: transformer layers.
        hidden_size: width h of the residual stream.
        ffn_hidden_size: inner width of the gated MLP.
        num_attention_heads: query heads.
        num_query_groups: key and value heads (equal to `num_attention_heads` for multi-head attention).
        kv_channels: width of one head.
        vocab_size: rows of the embedding as published, without any padding.
        max_position_embeddings: longest sequence, in tokens.
        rotary_base: RoPE's θ.
        norm_epsilon: ε of every RMSNorm.
        tie_word_embeddings: whether the output head is the embedding.
        qkv_bias: whether the query, key and value projections have biases.
        attention_output_bias: whether the attention's output projection has one.
        mlp_bias: whether the MLP's projections have biases.
        qk_norm: whether each head's queries and keys go through an RMSNorm, before RoPE.
        rope_scaling: None for plain RoPE.
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    max_position_embeddings: int
    rotary_base: float
    norm_epsilon: float
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope_scaling: RopeScaling | None

    def to_dict(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ArchitectureCard":
        """Reads `to_dict`'s form back.

        Raises:
            UserError: a field is missing or unknown, as in a checkpoint of another version, or of a wrong type.
        """
        _check_names(cls, values)
        for field in dataclasses.fields(cls):
            wanted = (int, float) if field.type is float else (field.type,)
            if field.name != "rope_scaling" and type(values[field.name]) not in wanted:
                raise UserError(
                    f"architecture card: {field.name} cannot be {values[field.name]!r}; convert the specialist again"
                )
        scaling = values["rope_scaling"]
        if scaling is not None:
            _check_names(RopeScaling, scaling)
            scaling = RopeScaling(**scaling)
        return cls(**values | {"rope_scaling": scaling})

    @property
    def query_width(self) -> int:
        """Width of all queries together, which is also that of the attention's output before its projection."""
        return self.num_attention_heads * self.kv_channels

    @property
    def qkv_width(self) -> int:
        """Width of all queries, keys and values together."""
        return self.query_width + 2 * self.num_query_groups * self.kv_channels

    def layer_matrix_count(self) -> int:
        """Number of parameters of one layer that are matrices, hence multiplied with every token."""
        attention = self.hidden_size * (self.qkv_width + self.query_width)
        return attention + 3 * self.hidden_size * self.ffn_hidden_size

    def parameter_count(self) -> int:
        """Number of parameters, padding excluded."""
        vectors = 2 * self.hidden_size
        vectors += self.qkv_width if self.qkv_bias else 0
        vectors += self.hidden_size if self.attention_output_bias else 0
        vectors += 2 * self.ffn_hidden_size + self.hidden_size if self.mlp_bias else 0
        vectors += 2 * self.kv_channels if self.qk_norm else 0
        vocabulary = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * (self.layer_matrix_count() + vectors) + self.hidden_size + vocabulary


def _check_names(kind: type[ArchitectureCard] | type[RopeScaling], values: dict[str, Any]) -> None:
    """Refuses values that are not exactly the fields of `kind`."""
    names = {field.name for field in dataclasses.fields(kind)}
    if wrong := sorted(names.symmetric_difference(values)):
        raise UserError(
            f"architecture card: missing or unknown fields {', '.join(wrong)}; convert the specialist again"
        )
