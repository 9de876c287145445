"""From an architecture card and a layout to megatron-core's `TransformerConfig`.

The configuration of the fused model as a whole is made in `fusion.model`.
"""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.runtime.kernels import fused_weight_gradients
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.fp8 import RECIPES, recipe
from megafuser.specialist.pipeline_split import layers_per_chunk

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _leave_as_is(weight: torch.Tensor) -> torch.Tensor:
    """An initialization that does nothing."""
    return weight


def transformer_config(
    card: ArchitectureCard,
    *,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    backend: str,
    memory: MemoryConfig | None = None,
    trains: bool = True,
) -> TransformerConfig:
    """megatron-core's configuration of one specialist.

    Args:
        card: its architecture.
        parallel: the layout; sequence parallelism counts only where there is tensor parallelism.
        precision: compute dtype and FP8 recipe.
        backend: `transformer_engine` or `torch`.
        memory: what the backward computes again; nothing where not given.
        trains: whether there is a backward; the FP8 recipe depends on it.
    """
    fp8 = recipe(precision, trains=trains)
    dtype = DTYPES[precision.dtype]
    fused = backend == "transformer_engine"
    return TransformerConfig(
        num_layers=card.num_layers,
        hidden_size=card.hidden_size,
        ffn_hidden_size=card.ffn_hidden_size,
        num_attention_heads=card.num_attention_heads,
        num_query_groups=card.num_query_groups,
        kv_channels=card.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=card.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        # the MLP's alone: attention has flags of its own, see `megafuser.specialist.self_attention`
        add_bias_linear=card.mlp_bias,
        qk_layernorm=card.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        pipeline_model_parallel_layout=_pipeline_layout(card.num_layers, parallel) if parallel.pipeline > 1 else None,
        sequence_parallel=parallel.sequence and parallel.tensor > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        fp8=RECIPES[fp8].format if fp8 else None,  # megatron-core names the format and the recipe apart
        fp8_recipe=fp8 or "delayed",
        first_last_layers_bf16=precision.fp8_first_last_bf16,
        num_layers_at_start_in_bf16=int(precision.fp8_first_last_bf16),
        num_layers_at_end_in_bf16=int(precision.fp8_first_last_bf16),
        # Weights come from a checkpoint, always, so construction need not fill them. Skipping the initialization itself
        # (perform_initialization=False) would also skip marking the weights as tensor-parallel, and gradient norms and
        # clipping would silently miss every rank but the first.
        init_method=_leave_as_is,
        output_layer_init_method=_leave_as_is,
        embedding_init_method=_leave_as_is,
        use_cpu_initialization=not fused,
        calculate_per_token_loss=True,
        apply_rope_fusion=fused,
        bias_activation_fusion=fused,
        # on the torch backend a module of ours takes the place of Transformer Engine's, see layer_specs
        use_te_activation_func=not fused,
        bias_dropout_fusion=fused,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        # Apex's alone: megatron-core would ask for it in the output head of a Transformer Engine model too, whose
        # layers are told by themselves, see `build`.
        gradient_accumulation_fusion=fused_weight_gradients(backend) == "Apex",
        **_recompute(memory or MemoryConfig()),
    )


def _pipeline_layout(num_layers: int, parallel: ParallelConfig) -> list[list[str]]:
    """megatron-core's names of what each chunk of the pipeline holds, in pipeline order."""
    chunks = [["decoder"] * layers for layers in layers_per_chunk(num_layers, parallel)]
    chunks[0].insert(0, "embedding")
    chunks[-1].append("loss")
    return chunks


def _recompute(memory: MemoryConfig) -> dict[str, Any]:
    if memory.recompute == "none":
        return {}
    if memory.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    uniform = {"recompute_method": "uniform", "recompute_num_layers": memory.recompute_layers}
    return {"recompute_granularity": "full", **uniform}
