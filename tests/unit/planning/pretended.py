"""One process that takes the place of any rank of a large world: communication does nothing, shapes are right."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.gate import GateConfig
from megafuser.fusion.model import FusedModel, build_fused_model
from megafuser.runtime import cpu_backend
from tests.unit.planning.architectures import Cards

GATE = 24


@contextmanager
def pretended_rank(rank: int, world: int, parallel: ParallelConfig) -> Iterator[None]:
    """Runs its body as that rank of that world."""
    cpu_backend.install()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
            create_gloo_process_groups=False,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(0)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def build_chunks(
    cards: Cards, parallel: ParallelConfig, dtype: str, memory: MemoryConfig | None = None
) -> list[FusedModel]:
    """This rank's chunks of the fused model on the torch backend."""
    virtual = parallel.virtual_pipeline
    return [
        build_fused_model(
            cards,
            parallel=parallel,
            precision=PrecisionConfig(dtype=dtype),  # type: ignore[arg-type]
            backend="torch",
            gate=GateConfig(GATE),
            shared_vocabulary=300,
            seed=0,
            memory=memory or MemoryConfig(),
            vp_stage=stage,
        )
        for stage in (range(virtual) if virtual > 1 else [None])
    ]
