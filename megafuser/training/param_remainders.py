"""Masters of which Transformer Engine's Adam keeps only what their weight lacks, as whole numbers for checkpoints.

With precision-aware states and bfloat16 weights it stores the lower 16 bits of each float32 master; the upper ones are
the weight's, which is rounded (`store_param_remainders`). Checkpoints hold the masters themselves, so that they load
whatever the optimizer keeps: megatron-core 0.16 would save the remainders as if they were masters, and fails when it
loads them. Which optimizer is built is `training.optimizer`'s to say.
"""

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_LOW = 0xFFFF


def keeps_remainders(adam: Any, parameter: torch.Tensor) -> bool:
    """Whether this optimizer stores the lower bits alone of that parameter's master."""
    return bool(getattr(adam, "store_param_remainders", False)) and parameter.dtype is torch.bfloat16


def join(weight: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """The masters, float32, of weights and their remainders.

    As Transformer Engine's kernel has it (`multi_tensor/adam.cu`): a weight whose remainder is negative was rounded up.

    Args:
        weight: bfloat16.
        remainder: int16, of the same shape.
    """
    high = weight.view(torch.int16).to(torch.int32) - (remainder < 0).to(torch.int32)
    return ((high << 16) | (remainder.to(torch.int32) & _LOW)).view(torch.float32)


def split(master: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights, bfloat16, and the remainders, int16, of float32 masters: what `join` takes."""
    bits = master.contiguous().view(torch.int32)
    low = bits & _LOW
    remainder = torch.where(low > _LOW // 2, low - (_LOW + 1), low).to(torch.int16)
    high = (bits >> 16) + (remainder < 0).to(torch.int32)
    return high.to(torch.int16).view(torch.bfloat16), remainder


def show_masters(inner: DistributedOptimizer) -> None:
    """Lets megatron-core's own reading and filling of states see whole masters, where remainders are stored.

    Filling also leaves out what stands beside the tensors when they were saved by rank (`padding`), which megatron-core
    0.16 would take for one more state of Transformer Engine's Adam.
    """
    read, fill = inner._get_main_param_and_optimizer_states, inner._set_main_param_and_optimizer_states

    def own(parameter: torch.nn.Parameter) -> torch.Tensor:
        group, order = inner.model_param_group_index_map[parameter]
        shard: torch.Tensor = inner.optimizer.param_groups[group]["params"][order]
        return shard

    def read_masters(parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = read(parameter)
        if keeps_remainders(inner.optimizer, own(parameter)):
            tensors["param"] = join(own(parameter).detach(), tensors["param"])
        return tensors

    def fill_masters(parameter: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        shard = own(parameter)
        tensors = {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
        if keeps_remainders(inner.optimizer, shard):
            # the weight too: another optimizer may have rounded what lies in the middle the other way
            weight, remainder = split(tensors["param"].to(shard.device))
            shard.detach().copy_(weight)
            tensors["param"] = remainder
        fill(parameter, tensors)

    inner._get_main_param_and_optimizer_states = read_masters
    inner._set_main_param_and_optimizer_states = fill_masters
