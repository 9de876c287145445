"""The state of this rank's random generators as one tensor of bytes, for checkpoints.

Seeding them is `runtime.distributed`; samples are drawn without them, by `data.sampler`.
"""

import torch


def get_random_state(device: torch.device) -> torch.Tensor:
    """[n] uint8: the CPU generator's state and, on CUDA, the device generator's after it."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Takes what `get_random_state` gave on a device of the same kind."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
