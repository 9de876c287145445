"""Process groups: from a launcher's variables to megatron-core's parallel state, and back to nothing.

Rank, number of ranks and where they meet are read by `runtime.world`; threads talk by `runtime.message_board`.
"""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megafuser.config.compute import ParallelConfig
from megafuser.errors import NotSavedError, UserError, full_disks_told
from megafuser.runtime.world import World, check_world_size, detect_world, rendezvous

_TIMEOUT = datetime.timedelta(minutes=30)
_LONG_WORK = datetime.timedelta(days=1)

T = TypeVar("T")


@contextmanager
def distributed(parallel: ParallelConfig, *, seed: int, device: torch.device, world: World) -> Iterator[World]:
    """Runs its body with process groups and megatron-core's parallel state in place, and takes them down at the end.

    Args:
        parallel: tensor and pipeline sizes; data parallelism takes the rest of the world.
        seed: seeds the parallel random states.
        device: this rank's device; on a CPU the CPU backend is installed first.
        world: this process's place.

    Raises:
        UserError: the world size does not fit the layout, or the launcher's rendezvous is incomplete.
    """
    check_world_size(parallel, world.size)
    if device.type == "cpu":
        from megafuser.runtime import cpu_backend

        cpu_backend.install()
    else:
        torch.cuda.set_device(device)
    from megatron.core import parallel_state, tensor_parallel

    _join(world, backend="gloo" if device.type == "cpu" else "nccl")
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        )
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        yield world
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextmanager
def single_process_cpu() -> Iterator[World]:
    """One rank on the CPU, whatever launched it: for conversion and its checks."""
    alone = World(rank=0, size=1, local_rank=0, launcher="single", local_size=1)
    with distributed(ParallelConfig(), seed=0, device=torch.device("cpu"), world=alone) as world:
        yield world


def _join(world: World, backend: str) -> None:
    if world.launcher == "single":
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT)
        return
    address, port = rendezvous(world, os.environ)
    dist.init_process_group(
        backend, init_method=f"tcp://{address}:{port}" if world.launcher == "slurm" else "env://",
        rank=world.rank, world_size=world.size, timeout=_TIMEOUT,
    )  # fmt: skip


def is_rank_zero() -> bool:
    """Whether this process is the one that prints and writes."""
    return dist.get_rank() == 0 if dist.is_initialized() else detect_world().rank == 0


def by_every_rank(work: Callable[[int, int], T]) -> list[T]:
    """Does a part of work that may take long on every rank; every rank gets what came out of all, by rank.

    Args:
        work: gives something that can be pickled, of its rank and the number of ranks.

    Raises:
        UserError, NotSavedError: what the first of the ranks that failed raised, on every rank; a full disk too.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        with full_disks_told():
            return [work(0, 1)]
    outcomes: list[Any] = [None] * dist.get_world_size()
    with _patient_group() as group:
        # a rank that left here would keep the others waiting
        own = _outcome(lambda: work(dist.get_rank(), dist.get_world_size()))
        dist.all_gather_object(outcomes, own, group=group)
    return [_result(outcome) for outcome in outcomes]


def all_or_none(work: Callable[[], T]) -> T:
    """Does the same work on every rank; where one fails, all do, since the others would wait for it in what follows.

    Returns:
        What came out on this rank.

    Raises:
        UserError, NotSavedError: what the first of the ranks that failed raised, on every rank; a full disk too.
    """
    own: list[T] = []

    def keep(rank: int, ranks: int) -> None:
        own.append(work())

    by_every_rank(keep)
    return own[0]


@contextmanager
def _patient_group() -> Iterator[dist.ProcessGroup]:
    """All ranks, for waiting: gloo also where the world's is NCCL, whose waiting ranks would keep their GPUs busy."""
    group = dist.new_group(backend="gloo", timeout=_LONG_WORK)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def rank_zero_leaves_last() -> None:
    """Keeps rank 0 until all ranks have come: launchers take its end for that of all, and its process has the store.

    Every rank calls it, when it asks nothing of the store any more.
    """
    if dist.get_world_size() > 1:
        dist.barrier()


def on_rank_zero(work: Callable[[], T]) -> T:
    """Does work that may take long on rank 0 only, while the others wait; every rank gets what came out.

    Args:
        work: gives something that can be pickled.

    Raises:
        UserError, NotSavedError: what rank 0 raised, on every rank; a full disk too.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        with full_disks_told():
            return work()
    outcome: list[Any] = [None]
    with _patient_group() as group:
        if dist.get_rank() == 0:
            outcome = [_outcome(work)]
        dist.broadcast_object_list(outcome, src=0, group=group)
    result: T = _result(outcome[0])
    return result


_Failure = type[UserError] | type[NotSavedError]


def _outcome(work: Callable[[], T]) -> tuple[_Failure | None, T | str]:
    """What came out of work, or why nothing did, as other ranks are told of it."""
    try:
        with full_disks_told():
            return None, work()
    except UserError as error:
        return UserError, str(error)
    except NotSavedError as error:
        return NotSavedError, str(error)


def _result(outcome: tuple[_Failure | None, Any]) -> Any:
    """What came out of work that a rank has done, or the error that it met."""
    failure, value = outcome
    if failure is not None:
        raise failure(value)
    return value
