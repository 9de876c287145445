"""Commands of megafuser under Transformer Engine's real fused Adam, on a CPU; its kernels are formulas here.

That optimizer counts steps in groups and not in parameters, names its states itself, and may keep of a master only the
bits that a bfloat16 weight lacks: a contract of its own for checkpoints, which PyTorch's AdamW, the CPU's, does not
test. Usage as `run_stages`, in forks of a process where `install` came before anything of megatron-core. Before a
command may stand `skipping`, and its first step has no finite loss; or `blockwise`, and the optimizer is told that
weights are in that FP8 format, whose masters megatron-core keeps itself.
"""

import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from tests import transformer_engine_stand_in


def adam(
    _chunk: int,
    _noop: torch.Tensor,
    lists: Sequence[Sequence[torch.Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decoupled: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """`multi_tensor_adam`: gradients, weights, both moments, and masters where weights are bfloat16."""
    assert decoupled and bias_correction and isinstance(step, int)
    for gradient, weight, first, second, *master in zip(*lists, strict=True):
        exact = master[0] if master else weight
        first.lerp_(gradient.float(), 1 - beta1)
        second.mul_(beta2).addcmul_(gradient.float(), gradient.float(), value=1 - beta2)
        update = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + eps)
        exact.sub_(lr * (update + weight_decay * exact))
        if master:
            weight.copy_(exact)


def adam_of_remainders(chunk: int, noop: torch.Tensor, lists: Sequence[Sequence[torch.Tensor]], *settings: Any) -> None:
    """`multi_tensor_adam_param_remainder`: of a master only its lower 16 bits are kept, beside the rounded weight."""
    gradients, weights, firsts, seconds, remainders = lists
    masters = [master_of(weight, remainder) for weight, remainder in zip(weights, remainders, strict=True)]
    adam(chunk, noop, [gradients, masters, firsts, seconds], *settings)
    for weight, remainder, master in zip(weights, remainders, masters, strict=True):
        bits = master.view(torch.int32)
        low = (bits & 0xFFFF).to(torch.int16)
        remainder.copy_(low)
        weight.view(torch.int16).copy_((bits >> 16).to(torch.int16) + (low < 0).to(torch.int16))


def master_of(weight: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """The float32 that a bfloat16 weight, rounded up where the remainder is negative, and its lower bits stand for."""
    high = weight.view(torch.int16) - (remainder < 0).to(torch.int16)
    return torch.stack([remainder, high], dim=-1).view(torch.float32).squeeze(-1)  # two halves, the lower one first


def install() -> None:
    """As `cpu_backend` for all but the optimizer: that is Transformer Engine's, as on a GPU."""
    transformer_engine_stand_in.install()
    compiled: Any = sys.modules["transformer_engine_torch"]
    compiled.multi_tensor_adam, compiled.multi_tensor_adam_param_remainder = adam, adam_of_remainders
    from megafuser.runtime import cpu_backend

    cpu_backend.install()
    fused: Any = importlib.import_module("transformer_engine.pytorch.optimizers.fused_adam")
    fused.torch = importlib.import_module("megatron.core.optimizer.optimizer").torch
    optimizers: Any = importlib.import_module("megatron.core.optimizer")
    optimizers.Adam, optimizers.USING_PYTORCH_OPTIMIZER = fused.FusedAdam, False
    states: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    states.HAVE_APEX_OR_TE = states.USING_TE_OPTIMIZER = True
    session: Any = importlib.import_module("megafuser.training.session")
    session.check_optimizer = lambda *_: None  # it wants a GPU


def main(command: Sequence[str]) -> int:
    """Runs one command."""
    from megafuser.cli.main import main as megafuser

    if command[0] not in AS_IF:
        return megafuser(command)
    with AS_IF[command[0]]():
        return megafuser(command[1:])


def skipping() -> Any:
    """The first step's loss is not finite."""
    from megafuser.training.engine import Engine

    compute = Engine.compute_gradients

    def without_first(engine: Engine, rows: Any) -> torch.Tensor:
        sums = compute(engine, rows)
        return sums * (math.nan if engine.skipped_steps == 0 else 1.0)

    return mock.patch.object(Engine, "compute_gradients", without_first)


def blockwise() -> Any:
    """The optimizer, and nothing else, is set up for weights in blockwise FP8."""
    from megafuser.training import optimizer

    settings = optimizer._memory_settings
    return mock.patch.object(optimizer, "_memory_settings", lambda *all: settings(*all) | {"fp8_recipe": "blockwise"})


AS_IF = {"skipping": skipping, "blockwise": blockwise}


if __name__ == "__main__":
    from tests.parallel import run_stages

    run_stages.main = main
    sys.exit(run_stages.run(*run_stages.commands_of(sys.argv[1:])))
