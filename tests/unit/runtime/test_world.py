"""Who a process is and where ranks meet, from every launcher's variables; and how many a layout needs."""

import re
import subprocess
from typing import Any

import pytest

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError
from megafuser.runtime import world as module
from megafuser.runtime.world import World, check_world_size, detect_world, rendezvous

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "16", "SLURM_LOCALID": "2", "SLURM_JOB_ID": "77"}

SLURM_RANK = World(rank=3, size=16, local_rank=3, launcher="slurm", local_size=8)
TORCHRUN_RANK = World(rank=1, size=2, local_rank=1, launcher="torchrun", local_size=2)
STEP = {"SLURM_JOB_ID": "4242", "SLURM_STEP_ID": "1", "SLURM_JOB_NODELIST": "gpu[07-10]"}


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


@pytest.fixture
def scontrol(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for Slurm's program; the commands that it got."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="gpu08\ngpu09\n", stderr="")

    monkeypatch.setattr(module.subprocess, "run", run)
    return commands


def test_variables_win(scontrol: list[list[str]]) -> None:
    given = {"MASTER_ADDR": "node0", "MASTER_PORT": "29511"}
    assert rendezvous(TORCHRUN_RANK, given) == ("node0", 29511)
    assert rendezvous(SLURM_RANK, STEP | given) == ("node0", 29511)
    assert not scontrol


def test_slurm_meets_at_the_first_node_of_the_step(scontrol: list[list[str]]) -> None:
    address, port = rendezvous(SLURM_RANK, STEP | {"SLURM_STEP_NODELIST": "gpu[08-09]"})
    assert address == "gpu08"
    assert 20000 <= port < 32000
    assert scontrol == [["scontrol", "show", "hostnames", "gpu[08-09]"]]
    assert rendezvous(SLURM_RANK, STEP)[1] == port
    assert scontrol[-1][-1] == STEP["SLURM_JOB_NODELIST"]


def test_jobs_and_steps_on_one_node_do_not_meet(scontrol: list[list[str]]) -> None:
    ports = {
        rendezvous(SLURM_RANK, STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})[1]
        for job in range(100, 110)
        for step in range(5)
    }
    assert len(ports) == 50
    rendezvous(SLURM_RANK, STEP | {"SLURM_STEP_ID": "batch"})


@pytest.mark.parametrize(
    "given", [{}, {"MASTER_ADDR": "node0"}, {"MASTER_PORT": "1"}, {"MASTER_ADDR": "node0", "MASTER_PORT": "http"}]
)
def test_nobody_says_where(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="do not say where rank 0 is"):
        rendezvous(TORCHRUN_RANK, given)


def test_slurm_without_its_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("scontrol")

    monkeypatch.setattr(module.subprocess, "run", missing)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        rendezvous(SLURM_RANK, STEP)
