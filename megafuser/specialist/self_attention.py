"""Self-attention whose biases are its own: one flag of megatron-core's would give them to the MLP too.

The attention between the projections is `specialist.core_attention` or Transformer Engine's.
"""

import copy
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules

from megafuser.specialist.core_attention import PackedSegments


class SelfAttentionWithOwnBiases(SelfAttention):
    """megatron-core's self-attention, with biases where the card says so.

    `TransformerConfig.add_bias_linear` gives biases to every linear layer of attention and MLP. Published models have
    them in either alone, and a bias that a model does not have would come to life in training. So the flag means the
    MLP's biases, and attention reads a copy of the configuration with flags of its own.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: SelfAttentionSubmodules,
        layer_number: int,
        *,
        qkv_bias: bool,
        output_bias: bool,
        **rest: Any,
    ) -> None:
        """Builds it.

        Args:
            config: the specialist's configuration.
            submodules: as megatron-core's.
            layer_number: as megatron-core's.
            qkv_bias: whether the query, key and value projections have biases.
            output_bias: whether the output projection has one.
            rest: passed on to megatron-core's constructor.
        """
        if output_bias and not qkv_bias:
            raise ValueError("megatron-core has no attention with a bias in its output projection alone")
        own = copy.copy(config)
        own.add_bias_linear, own.add_qkv_bias = output_bias, qkv_bias
        super().__init__(own, submodules, layer_number, **rest)


class PackedSelfAttention(SelfAttentionWithOwnBiases):
    """The `torch` backend's: turns queries and keys by cosines and sines that are made once for a row and all layers.

    megatron-core's own RoPE for packed rows cuts the tables anew in every layer, and stops restarting at segments where
    a table happens to be as long as the row. So its place stays empty here, and the core attention turns them.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: PackedSegments | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As megatron-core's, of a packed row."""
        if packed_seq_params is None or rotary_pos_emb is None:
            raise ValueError("the torch backend attends packed rows with RoPE only; pass packed_seq_params")
        packed_seq_params.turn_by(rotary_pos_emb, hidden_states.dtype)
        attended: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
            hidden_states, attention_mask, packed_seq_params=packed_seq_params, **rest
        )
        return attended
