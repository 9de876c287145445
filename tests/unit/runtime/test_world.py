"""Who a process is, from every launcher's variables; and how many a layout needs."""

import re

import pytest

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError
from megafuser.runtime.world import World, check_world_size, detect_world

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "16", "SLURM_LOCALID": "2", "SLURM_JOB_ID": "77"}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World(rank=0, size=1, local_rank=0, launcher="single", local_size=1)),
        (TORCHRUN, World(rank=5, size=8, local_rank=1, launcher="torchrun", local_size=4)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, World(rank=0, size=2, local_rank=0, launcher="torchrun", local_size=2)),
        (SLURM, World(rank=3, size=16, local_rank=2, launcher="slurm", local_size=16)),
        (
            SLURM | {"SLURM_NTASKS_PER_NODE": "8"},
            World(rank=3, size=16, local_rank=2, launcher="slurm", local_size=8),
        ),
        # torchrun started by srun
        (SLURM | TORCHRUN, World(rank=5, size=8, local_rank=1, launcher="torchrun", local_size=4)),
        # half of torchrun's variables are not torchrun's
        (SLURM | {"RANK": "5"}, World(rank=3, size=16, local_rank=2, launcher="slurm", local_size=16)),
        ({"WORLD_SIZE": "4"}, World(rank=0, size=1, local_rank=0, launcher="single", local_size=1)),
    ],
)
def test_place(environment: dict[str, str], world: World) -> None:
    assert detect_world(environment) == world


def test_python_without_srun_inside_an_allocation_is_alone() -> None:
    """salloc and sbatch set the job's and the batch task's variables, but no step's."""
    allocation = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert detect_world(allocation | {"SLURM_NTASKS": "16"}).launcher == "single"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (TORCHRUN | {"RANK": "first"}, "RANK=first"),
        (TORCHRUN | {"WORLD_SIZE": ""}, "WORLD_SIZE="),
        (TORCHRUN | {"LOCAL_RANK": "1.5"}, "LOCAL_RANK=1.5"),
        (TORCHRUN | {"RANK": "8"}, "RANK=8 is not a rank of WORLD_SIZE=8"),
        (TORCHRUN | {"RANK": "-1"}, "RANK=-1 is not a rank"),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "0"}, "not a rank of WORLD_SIZE=0"),
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID=x"),
        (SLURM | {"SLURM_PROCID": "16"}, "SLURM_PROCID=16 is not a rank of SLURM_NTASKS=16"),
    ],
)
def test_variables_that_cannot_be(environment: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        detect_world(environment)


@pytest.mark.parametrize(("tensor", "pipeline", "size"), [(1, 1, 1), (1, 1, 7), (2, 1, 2), (2, 2, 8), (8, 2, 16)])
def test_sizes_that_fit(tensor: int, pipeline: int, size: int) -> None:
    check_world_size(ParallelConfig(tensor=tensor, pipeline=pipeline), size)


@pytest.mark.parametrize(("tensor", "pipeline", "size"), [(2, 1, 1), (1, 2, 3), (2, 2, 6)])
def test_sizes_that_do_not(tensor: int, pipeline: int, size: int) -> None:
    wanted = f"tensor {tensor} x pipeline {pipeline} needs a multiple of {tensor * pipeline} processes.* are {size}"
    with pytest.raises(UserError, match=wanted):
        check_world_size(ParallelConfig(tensor=tensor, pipeline=pipeline), size)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "size", "start"),
    [
        (2, 1, 1, "use more of them (torchrun --nproc-per-node 2)"),
        (2, 2, 6, "use more of them (torchrun --nproc-per-node 8)"),
        (8, 2, 8, "use more nodes (sbatch --nodes=2, torchrun --nnodes 2 --nproc-per-node 8)"),
        (8, 2, 24, "use more nodes (sbatch --nodes=4, torchrun --nnodes 4 --nproc-per-node 8)"),
        (4, 3, 8, "use more nodes (sbatch --nodes=2 --ntasks-per-node=6, torchrun --nnodes 2 --nproc-per-node 6)"),
    ],
)
def test_how_many_would_do(tensor: int, pipeline: int, size: int, start: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"; {start} or set parallel.tensor and parallel.pipeline")):
        check_world_size(ParallelConfig(tensor=tensor, pipeline=pipeline), size)
