"""The architecture card: all that must be known of a specialist to build it, in a small frozen dataclass.

A converted checkpoint carries its card in the manifest, so that nothing later needs the Hugging Face configuration.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from megafuser.errors import UserError


@dataclass(frozen=True)
class ArchitectureCard:
    """A decoder-only transformer's shape, in megatron-core's names.

    Attributes:
        family: the model family whose weight table applies, e.g. `llama`.
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

    def to_dict(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ArchitectureCard":
        """Reads `to_dict`'s form back.

        Raises:
            UserError: a field is missing or unknown, as in a checkpoint of another version.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(names.symmetric_difference(values)):
            raise UserError(
                f"architecture card: missing or unknown fields {', '.join(wrong)}; convert the specialist again"
            )
        return cls(**values)

    def parameter_count(self) -> int:
        """Number of parameters, padding excluded."""
        query_width = self.num_attention_heads * self.kv_channels
        key_value_width = 2 * self.num_query_groups * self.kv_channels
        attention = self.hidden_size * (query_width + key_value_width) + query_width * self.hidden_size
        mlp = 3 * self.hidden_size * self.ffn_hidden_size
        norms = 2 * self.hidden_size
        vocabulary = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + self.hidden_size + vocabulary
