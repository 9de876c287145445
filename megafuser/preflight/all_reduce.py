"""One tiny all-reduce over all ranks, which ends in time whatever the network does.

The process groups of training are `runtime.distributed`.
"""

import datetime
import os
import threading
from collections.abc import Mapping

from megafuser.runtime.world import World

_NETWORK = {"nccl": "NCCL_SOCKET_IFNAME and NCCL_IB_HCA", "gloo": "GLOO_SOCKET_IFNAME"}


def try_all_reduce(world: World, device: str, environment: Mapping[str, str], seconds: float) -> str | None:
    """Adds the ranks' numbers, over NCCL on GPUs, else over gloo.

    A rank that hangs stays behind in a thread of its own: the process must end with `os._exit` then.

    Args:
        world: this process's place.
        device: `cuda` or `cpu`.
        environment: where rank 0 listens.
        seconds: how long it may take.

    Returns:
        What went wrong; None if all is well.
    """
    outcome: list[str | None] = []
    progress = ["joining"]

    def work() -> None:
        try:
            outcome.append(_all_reduce(world, device, environment, seconds, progress))
        except Exception as error:
            # Told to rank 0, which ends all ranks and names this one's node.
            outcome.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if outcome == [None]:
        return None
    backend = backend_of(device)
    remedy = (
        f"set {_NETWORK[backend]} to the nodes' network, or exclude the node (sbatch --exclude=NODE), and submit again"
    )
    if not outcome:
        return f"an all-reduce over {backend} was still {progress[-1]} after {seconds:.0f} seconds; {remedy}"
    return f"an all-reduce over {backend} failed while {progress[-1]} ({outcome[0]}); {remedy}"


def backend_of(device: str) -> str:
    """The backend of a device's type."""
    return "nccl" if device == "cuda" else "gloo"


def _all_reduce(
    world: World, device: str, environment: Mapping[str, str], seconds: float, progress: list[str]
) -> str | None:
    # NCCL's watchdog would end the process before it could say why.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        backend_of(device),
        init_method=f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
        rank=world.rank,
        world_size=world.size,
        timeout=datetime.timedelta(seconds=seconds),
    )
    progress.append("adding")
    place = torch.device("cuda", world.local_rank) if device == "cuda" else torch.device("cpu")
    number = torch.full((1,), world.rank + 1, dtype=torch.int64, device=place)
    dist.all_reduce(number)
    found, right = int(number.item()), world.size * (world.size + 1) // 2
    progress.append("leaving")
    dist.destroy_process_group()
    return None if found == right else f"the sum is {found}, not {right}"
