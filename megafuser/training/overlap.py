"""Communication of data parallelism that goes on while the model computes: megatron-core's DDP, told to do so.

DDP itself is set up in `training.optimizer`.
"""

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel


def set_overlap(chunks: Sequence[DistributedDataParallel]) -> None:
    """Tells the schedules, and what megatron-core's hooks do not see, to overlap as the chunks' wrapping says.

    Args:
        chunks: this rank's, in order.
    """
    config, ddp_config = chunks[0].config, chunks[0].ddp_config
    config.no_sync_func = None
    if ddp_config.overlap_grad_reduce:
        # Gradients are reduced in the last micro-batch only, once they are whole.
        functions = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = functions if len(functions) > 1 else functions[0]
    if ddp_config.overlap_param_gather and chunks[-1].module.post_process:
        _await_head_and_gate(chunks[-1])


def _await_head_and_gate(chunk: DistributedDataParallel) -> None:
    """Waits for the weights of output heads and gate after the last layer of the last specialist.

    Megatron-core waits for a module's weights before the module is called. These are read without such a call.
    """
    model = chunk.module
    weights = [*model.gate.parameters(), *(specialist.head_weight() for specialist in model.specialists)]

    def wait(*_: object) -> None:
        # without the forward's hooks (see DDP's disable_forward_pre_hook) all weights are up to date already
        for weight in weights:
            group = chunk.param_to_bucket_group.get(weight)
            if group is not None and chunk.remove_forward_pre_hook_handles:
                group.finish_param_sync(skip_next_bucket_dispatch=True)

    last: torch.nn.Module = model.specialists[-1]
    last.register_forward_hook(wait)
