"""Bytes that an engine really holds between steps, to compare with the planner's."""

from collections.abc import Iterable

import torch

from megafuser.training.engine import Engine


def state_bytes_of(engine: Engine) -> dict[str, int]:
    """Weights, gradient buffers, masters, moments and step counts of this rank, after a step; each storage once."""
    weights = [parameter for chunk in engine.chunks for parameter in chunk.parameters()]
    held = {tensor.untyped_storage().data_ptr() for tensor in weights}
    inner = [part.optimizer for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])]
    inner = [optimizer for optimizer in inner if optimizer is not None]
    groups = [tensor for optimizer in inner for group in optimizer.param_groups for tensor in group["params"]]
    states = [state for optimizer in inner for state in optimizer.state.values()]
    return {
        "weights": _bytes(weights),
        "gradients": sum(buffer.grad_data.nbytes for ddp in engine.ddp for buffer in ddp.buffers),
        "masters": _bytes(tensor for tensor in groups if tensor.untyped_storage().data_ptr() not in held),
        "moments": _bytes(state[name] for state in states for name in ("exp_avg", "exp_avg_sq")),
        # a fused Adam counts once, as a number
        "steps": _bytes(state["step"] for state in states if "step" in state),
    }


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
