"""From accumulated to final gradients: reduced over the ranks, tied embeddings joined, divided by the step's tokens.

Accumulating them is `training.engine`; their norms are `training.gradient_norms`.
"""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads

from megafuser.fusion.model import FusedModel
from megafuser.training.pipeline import broadcast_from_last_stage


def finalize_gradients(model: list[DistributedDataParallel], num_tokens: torch.Tensor | None, **groups: Any) -> None:
    """Takes the place of megatron-core's `finalize_model_grads` in the fused configuration.

    Megatron-core's reduces over data and tensor parallelism; it knows the tied embeddings of one model only, so each
    tied specialist's are joined here, after that reduction and before the division.

    Args:
        model: this rank's chunks.
        num_tokens: response tokens of this data-parallel rank's micro-batches, on the last stage (0 before it).
        groups: what megatron-core's schedules pass along.
    """
    finalize_model_grads(model, None, **groups)
    for chunk in model:
        _join_tied_embeddings(chunk.module)
    assert num_tokens is not None, "the fused configuration sets calculate_per_token_loss"
    total = num_tokens.clone()
    broadcast_from_last_stage(total)
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if total > 0:
        for chunk in model:
            chunk.scale_gradients(1.0 / total.item())


def _join_tied_embeddings(model: FusedModel) -> None:
    """Adds up the gradients of the two copies of each tied embedding, on the first and the last stage."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1 or not (model.pre_process or model.post_process):
        return
    for specialist in model.specialists:
        if not specialist.share_embeddings_and_output_weights:
            continue
        weight = specialist.shared_embedding_or_output_weight()
        # In warm-up the specialists are frozen and have no gradient buffers.
        if weight.requires_grad:
            torch.distributed.all_reduce(weight.main_grad, group=parallel_state.get_embedding_group())
