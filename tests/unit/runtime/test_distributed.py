"""Where ranks meet, and process groups that come and go in one process."""

import subprocess
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError
from megafuser.runtime import distributed as module
from megafuser.runtime.distributed import distributed, is_rank_zero, rendezvous, single_process_cpu
from megafuser.runtime.world import World

SLURM = World(rank=3, size=16, local_rank=3, launcher="slurm", local_size=8)
TORCHRUN = World(rank=1, size=2, local_rank=1, launcher="torchrun", local_size=2)
STEP = {"SLURM_JOB_ID": "4242", "SLURM_STEP_ID": "1", "SLURM_JOB_NODELIST": "gpu[07-10]"}


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
    assert rendezvous(TORCHRUN, given) == ("node0", 29511)
    assert rendezvous(SLURM, STEP | given) == ("node0", 29511)
    assert not scontrol


def test_slurm_meets_at_the_first_node_of_the_step(scontrol: list[list[str]]) -> None:
    address, port = rendezvous(SLURM, STEP | {"SLURM_STEP_NODELIST": "gpu[08-09]"})
    assert address == "gpu08"
    assert 20000 <= port < 32000
    assert scontrol == [["scontrol", "show", "hostnames", "gpu[08-09]"]]
    assert rendezvous(SLURM, STEP)[1] == port
    assert scontrol[-1][-1] == STEP["SLURM_JOB_NODELIST"]


def test_jobs_and_steps_on_one_node_do_not_meet(scontrol: list[list[str]]) -> None:
    ports = {
        rendezvous(SLURM, STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})[1]
        for job in range(100, 110)
        for step in range(5)
    }
    assert len(ports) == 50
    rendezvous(SLURM, STEP | {"SLURM_STEP_ID": "batch"})


@pytest.mark.parametrize(
    "given", [{}, {"MASTER_ADDR": "node0"}, {"MASTER_PORT": "1"}, {"MASTER_ADDR": "node0", "MASTER_PORT": "http"}]
)
def test_nobody_says_where(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="do not say where rank 0 is"):
        rendezvous(TORCHRUN, given)


def test_slurm_without_its_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("scontrol")

    monkeypatch.setattr(module.subprocess, "run", missing)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        rendezvous(SLURM, STEP)


def test_a_process_alone_comes_and_goes() -> None:
    for _ in range(2):
        with single_process_cpu() as world:
            assert world.size == dist.get_world_size() == 1
            assert parallel_state.get_tensor_model_parallel_world_size() == 1
            assert is_rank_zero()
        assert not dist.is_initialized()
        assert not parallel_state.model_parallel_is_initialized()


def test_it_is_taken_down_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), single_process_cpu():
        _ = 1 / 0
    assert not dist.is_initialized()


def test_a_wrong_world_is_refused_before_anything_is_made() -> None:
    alone = World(rank=0, size=1, local_rank=0, launcher="single", local_size=1)
    with (
        pytest.raises(UserError, match="needs a multiple of 2"),
        distributed(ParallelConfig(tensor=2), seed=0, device=torch.device("cpu"), world=alone),
    ):
        pass
    assert not dist.is_initialized()


def test_the_seed_seeds() -> None:
    alone = World(rank=0, size=1, local_rank=0, launcher="single", local_size=1)
    draws = []
    for seed in (1, 1, 2):
        with distributed(ParallelConfig(), seed=seed, device=torch.device("cpu"), world=alone):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
