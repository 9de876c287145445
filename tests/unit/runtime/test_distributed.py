"""Process groups that come and go in one process."""

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError
from megafuser.runtime.distributed import distributed, is_rank_zero, single_process_cpu
from megafuser.runtime.world import World


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
