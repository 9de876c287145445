"""In which form a checkpoint has the optimizer's states, and at which layouts that form can be read.

States are saved by parameter, which loads at any layout, or as the distributed optimizer's ranks hold them, which is
megatron-core's `dp_reshardable`. The second takes no gathering, but loads only where the buckets of parameters are the
same: at the same tensor and pipeline sizes, and with the same size of buckets, which depends on the data-parallel size
where that is above 40 and reductions overlap with computing.

The states themselves are made and filled by `training.optimizer_state`.
"""

from pathlib import Path

from megafuser.checkpoint.manifest import Manifest
from megafuser.checkpoint.manifest_content import OptimizerLayout
from megafuser.config.compute import ParallelConfig
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.planning.buffers import bucket_size


def skips_gathering(config: RunConfig, data_parallel: int) -> bool:
    """Whether `checkpoint.reshardable` asks for the ranks' own form between a joint stage's begin and end.

    With one data-parallel rank there is nothing to gather: its states are all that there is.
    """
    return config.checkpoint.reshardable == "on_exit" and config.optimizer.distributed and data_parallel > 1


def optimizer_layout(parallel: ParallelConfig, data_parallel: int) -> OptimizerLayout:
    """What the buckets of the distributed optimizer depend on."""
    return {
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "virtual_pipeline": parallel.virtual_pipeline,
        "bucket_size": bucket_size(
            overlapped=parallel.overlap_grad_reduce, data_parallel=data_parallel, pipeline_rank=0, virtual_stage=0
        ),
    }


def is_reshardable(manifest: Manifest) -> bool:
    """Whether a run's checkpoint loads at any layout."""
    return manifest.run.get("optimizer_layout") is None


def refuse_other_layout(
    directory: Path, manifest: Manifest, parallel: ParallelConfig, world: int, *, any_buckets: bool = False
) -> None:
    """Refuses to go on from a checkpoint at a layout that it cannot be read at.

    Args:
        directory: the checkpoint.
        manifest: its manifest.
        parallel: the layout to go on at.
        world: number of ranks.
        any_buckets: whether the optimizer is built with the checkpoint's buckets, whatever they are.

    Raises:
        UserError: names what differs, and the command that converts the checkpoint.
    """
    saved = manifest.run.get("optimizer_layout")
    if saved is None:
        return
    now = optimizer_layout(parallel, world // (parallel.tensor * parallel.pipeline))
    if any_buckets:
        now["bucket_size"] = saved["bucket_size"]
    found = [f"{key} {saved.get(key)} → {value}" for key, value in now.items() if saved.get(key) != value]
    if found:
        ranks = saved["tensor"] * saved["pipeline"]
        raise UserError(
            f"{directory} was saved between two steps with checkpoint.reshardable: on_exit, so it loads at its own "
            f"layout only ({', '.join(found)}); go on at that layout, or convert it: torchrun --nproc-per-node {ranks} "
            f"-m megafuser reshard --checkpoint {directory} --out {directory} --overwrite"
        )
