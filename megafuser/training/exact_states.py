"""What a precision-aware Adam keeps in a form of its own, as whole float32 numbers for checkpoints.

With bfloat16 weights, Transformer Engine's stores the lower 16 bits of each float32 master; the upper ones are the
weight's, which is rounded (`store_param_remainders`). With float32 weights, its masters are never updated: the weights
are. Moments below float32 are scaled. Checkpoints hold the numbers themselves, so that they load whatever the optimizer
keeps; megatron-core 0.16 would save remainders as if they were masters, fails when it loads them, and drops the scales
under some FP8 recipes. Which optimizer is built is `training.optimizer`'s to say.
"""

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_LOW = 0xFFFF
_MOMENTS = ("exp_avg", "exp_avg_sq")


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


def show_numbers(inner: DistributedOptimizer) -> None:
    """Lets megatron-core's own reading and filling of a precision-aware Adam's states see the numbers that they mean.

    Filling also leaves out what stands beside the tensors when they were saved by rank (`padding`), which megatron-core
    0.16 would take for one more state.
    """
    adam: Any = inner.optimizer
    read, fill = inner._get_main_param_and_optimizer_states, inner._set_main_param_and_optimizer_states

    def own(parameter: torch.nn.Parameter) -> torch.Tensor:
        group, order = inner.model_param_group_index_map[parameter]
        shard: torch.Tensor = adam.param_groups[group]["params"][order]
        return shard

    def read_numbers(parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        shard = own(parameter)
        tensors: dict[str, torch.Tensor] = read(parameter)
        for name in _MOMENTS:
            tensors[name] = adam.get_unscaled_state(shard, name)
        if keeps_remainders(adam, shard):
            tensors["param"] = join(shard.detach(), tensors["param"])
        elif shard.dtype is torch.float32:
            tensors["param"] = shard.detach()
        # what was made here would take the GPU's memory until all is saved
        kept = {shard.data_ptr(), *(value.data_ptr() for value in adam.state[shard].values())}
        return {key: value if value.data_ptr() in kept else value.cpu() for key, value in tensors.items()}

    def fill_numbers(parameter: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        shard = own(parameter)
        tensors = {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
        if keeps_remainders(adam, shard):
            # the weight too: another optimizer may have rounded what lies in the middle the other way
            weight, remainder = split(tensors["param"].to(shard.device))
            shard.detach().copy_(weight)
            tensors["param"] = remainder
        # copies: scaling, which filling may do already, changes what it is given
        moments = {name: tensors[name].float().clone() for name in _MOMENTS}
        fill(parameter, tensors)
        for name, moment in moments.items():
            adam.set_scaled_state(shard, name, moment)

    inner._get_main_param_and_optimizer_states = read_numbers
    inner._set_main_param_and_optimizer_states = fill_numbers
