"""Who this process is among the others, and where they meet: torchrun's variables, Slurm's, or a process alone.

Process groups are made by `runtime.distributed`.
"""

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError

# GPUs of a node, and the tasks that the job scripts start on it.
_NODE = 8


@dataclass(frozen=True)
class World:
    """This process's place.

    Attributes:
        rank: global rank, from 0.
        size: number of processes in all.
        local_rank: rank within the node, which is also the index of its GPU.
        launcher: `torchrun`, `slurm` or `single`.
        local_size: number of processes on this node; all of them where the launcher does not say.
    """

    rank: int
    size: int
    local_rank: int
    launcher: str
    local_size: int


def detect_world(environment: Mapping[str, str] = os.environ) -> World:
    """Reads the launcher's variables; torchrun's go before Slurm's, since torchrun may run inside an allocation.

    Slurm's count only in a job step (`SLURM_STEP_ID` is set by srun): a plain `python` inside an allocation is alone.

    Raises:
        UserError: variables that are not numbers or contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        launcher = "torchrun"
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
        launcher = "slurm"
    else:
        return World(rank=0, size=1, local_rank=0, launcher="single", local_size=1)
    try:
        rank, size, local_rank, local_size = (int(environment.get(name, "0")) for name in names)
    except ValueError:
        values = ", ".join(f"{name}={environment.get(name)}" for name in names)
        raise UserError(
            f"the launcher's variables are not numbers: {values}; unset them or start with torchrun or srun"
        ) from None
    if not 0 <= rank < size:
        raise UserError(
            f"{names[0]}={rank} is not a rank of {names[1]}={size}; unset them or start with torchrun or srun"
        )
    return World(rank, size, local_rank, launcher, local_size or size)


def rendezvous(world: World, environment: Mapping[str, str]) -> tuple[str, int]:
    """Where rank 0 listens.

    `MASTER_ADDR` and `MASTER_PORT` win. Under srun they default to the step's first node and to a port made from the
    job's and step's ids, so that jobs that share a node do not collide; it lies below the range from which systems give
    ports to whoever asks for any.

    Raises:
        UserError: neither the variables nor Slurm tell.
    """
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if world.launcher == "slurm":
        address = address or _first_host(environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"])
        port = port or _port_of_step(environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"])
    if not address or not port or not port.isdigit():
        raise UserError(
            f"MASTER_ADDR={address} and MASTER_PORT={port} do not say where rank 0 is; use torchrun or srun"
        )
    return address, int(port)


def _port_of_step(job: str, step: str) -> str:
    return str(20000 + (int(job) * 61 + (int(step) if step.isdigit() else 0)) % 12000)


def _first_host(nodes: str) -> str:
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"scontrol cannot expand the node list {nodes!r} ({error}); set MASTER_ADDR") from None
    return shown.stdout.split()[0]


def check_world_size(parallel: ParallelConfig, size: int) -> None:
    """Refuses a world that the layout does not divide.

    Raises:
        UserError: says which sizes would do.
    """
    model_parallel = parallel.tensor * parallel.pipeline
    if size % model_parallel:
        raise UserError(
            f"parallel: tensor {parallel.tensor} x pipeline {parallel.pipeline} needs a multiple of {model_parallel} "
            f"processes, but there are {size}; {_enough(-(-size // model_parallel) * model_parallel)} or set "
            "parallel.tensor and parallel.pipeline"
        )


def _enough(size: int) -> str:
    """How to start so many processes, on as few nodes of at most 8 GPUs as go into it evenly."""
    nodes = next(nodes for nodes in range(1, size + 1) if size % nodes == 0 and size // nodes <= _NODE)
    own = size // nodes
    if nodes == 1:
        return f"use more of them (torchrun --nproc-per-node {own})"
    tasks = "" if own == _NODE else f" --ntasks-per-node={own}"
    return f"use more nodes (sbatch --nodes={nodes}{tasks}, torchrun --nnodes {nodes} --nproc-per-node {own})"


def whereabouts() -> dict[str, str | int]:
    """Where this process is to be found: `host`, `pid` and, in one of Slurm's jobs, `slurm_job`."""
    place: dict[str, str | int] = {"host": socket.gethostname(), "pid": os.getpid()}
    if job := os.environ.get("SLURM_JOB_ID"):
        place["slurm_job"] = job
    return place
