"""The weights of a joint checkpoint, read by PyTorch's own loader, under Hugging Face's names, without megafuser."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp


def stored_weights(directory: Path) -> dict[str, torch.Tensor]:
    described = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in described.items()
        if key.startswith(("gate.", "specialists."))
    }
    dcp.load(tensors, checkpoint_id=directory, no_dist=True)
    return tensors


def below(stored: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}


def huggingface_weights(own: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Megatron-core's tensors of one specialist, layers stacked, under Hugging Face's names; written out by hand."""
    groups, rows = config.num_key_value_heads, config.vocab_size
    per_group, head = config.num_attention_heads // groups, config.hidden_size // config.num_attention_heads
    weights = {
        "model.embed_tokens.weight": own["embedding.word_embeddings.weight"][:rows],
        "lm_head.weight": own["output_layer.weight"][:rows],
        "model.norm.weight": own["decoder.final_layernorm.weight"],
    }
    for layer in range(config.num_hidden_layers):
        here = {key.removeprefix("decoder.layers."): value[layer] for key, value in own.items() if ".layers." in key}
        qkv = here["self_attention.linear_qkv.weight"].unflatten(0, (groups, per_group + 2, head))
        gate, up = here["mlp.linear_fc1.weight"].chunk(2)
        weights |= {
            f"model.layers.{layer}.{name}.weight": value
            for name, value in {
                "self_attn.q_proj": qkv[:, :per_group].flatten(0, 2),
                "self_attn.k_proj": qkv[:, per_group].flatten(0, 1),
                "self_attn.v_proj": qkv[:, per_group + 1].flatten(0, 1),
                "self_attn.o_proj": here["self_attention.linear_proj.weight"],
                "mlp.gate_proj": gate,
                "mlp.up_proj": up,
                "mlp.down_proj": here["mlp.linear_fc2.weight"],
                "input_layernorm": here["self_attention.linear_qkv.layer_norm_weight"],
                "post_attention_layernorm": here["mlp.linear_fc1.layer_norm_weight"],
            }.items()
        }
    return weights
