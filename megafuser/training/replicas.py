"""A check of training itself: the gate's replicas over tensor and data parallelism are the same, bit by bit.

The specialists are not compared; ranks that are lost are noticed by `runtime.heartbeat`.
"""

import hashlib

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megafuser.fusion.gate import Gate


def check_gate_replicas(gate: Gate | None, step: int) -> None:
    """Compares this rank's gate with those of all ranks that hold one; each of these calls it.

    Args:
        gate: this rank's; None before the last pipeline stage, where there is nothing to compare.
        step: the optimizer step that is done, for the message.

    Raises:
        RuntimeError: names the tensors that differ, and the ranks. That is a bug: reductions or updates went apart.
    """
    if gate is None:
        return
    group = parallel_state.get_tensor_and_data_parallel_group()
    names, own = zip(*((name, _digest(value)) for name, value in gate.named_parameters()), strict=True)
    digests = torch.stack(own).to(next(gate.parameters()).device)
    gathered = [torch.empty_like(digests) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, digests, group=group)
    ranks = dist.get_process_group_ranks(group)
    differing = {
        name: [rank for rank, theirs in zip(ranks, gathered, strict=True) if not theirs[i].equal(gathered[0][i])]
        for i, name in enumerate(names)
    }
    told = "; ".join(f"{name} on ranks {', '.join(map(str, odd))}" for name, odd in differing.items() if odd)
    if told:
        raise RuntimeError(f"after step {step} replicas of the gate differ from that of rank {ranks[0]}: {told}")


def _digest(tensor: torch.Tensor) -> torch.Tensor:
    """[32] uint8: the SHA-256 of a tensor's bytes."""
    content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)
