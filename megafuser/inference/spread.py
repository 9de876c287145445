"""How a model that is used is spread over the processes, where nobody says it, or only one of both sizes.

Whether a layout suits the specialists is found by `specialist.layout_checks`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from megafuser.config.compute import ParallelConfig
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.runtime.world import World
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.layout_checks import check_layout


@dataclass(frozen=True)
class Layout:
    """What the user says of the layout.

    Attributes:
        tensor: tensor-parallel size.
        pipeline: pipeline stages.
    """

    tensor: int | None = None
    pipeline: int | None = None


def spread(
    config: RunConfig,
    cards: Mapping[str, ArchitectureCard],
    world: World,
    asked: Layout,
    *,
    copies: bool = False,
) -> ParallelConfig:
    """A layout over all processes.

    As the user says, where one size makes the other what is left of the processes; else as in training, where that
    makes the number of processes; else by the largest tensor-parallel size within a node that suits every specialist,
    the rest by pipeline stages. Chunks of a virtual pipeline are training's: only its own layout has them.

    Args:
        config: the checkpoint's, with the layout that it was trained in.
        cards: the specialists' architectures, by name.
        world: the processes.
        asked: what the user says.
        copies: whether the layout of training, and one that the user says in full, may be there several times, by data
            parallelism.

    Raises:
        UserError: the sizes do not make the number of processes, or none suits the specialists.
    """
    if asked != Layout():
        return _as_asked(config.parallel, world.size, asked, copies)
    trained = config.parallel
    sizes = [size for size in range(min(world.local_size, world.size), 0, -1) if world.size % size == 0]
    candidates = [_sized(trained, size, world.size // size) for size in sizes]
    if _fits(trained, world.size, copies):
        candidates.insert(0, trained)
    for candidate in candidates:
        try:
            check_layout(cards, dataclasses.replace(config, parallel=candidate), world.size)
        except UserError as error:
            refusal = error
        else:
            return candidate
    raise refusal


def for_decoding(trained: ParallelConfig) -> ParallelConfig:
    """The layout of training as far as decoding can have it: its sizes.

    A step is one micro-batch, of a token of each sequence: it cannot be cut into shares for the tensor-parallel ranks
    (sequence parallelism), and chunks of a virtual pipeline would send it around more often for nothing.
    """
    return ParallelConfig(tensor=trained.tensor, pipeline=trained.pipeline)


def _as_asked(trained: ParallelConfig, processes: int, asked: Layout, copies: bool) -> ParallelConfig:
    """The sizes that the user wants; what suits the specialists is looked at where the model is made."""
    tensor, pipeline = asked.tensor, asked.pipeline
    for option, size, other in (("--tensor", tensor, pipeline), ("--pipeline", pipeline, tensor)):
        if size is not None and other is None and processes % size:
            raise UserError(f"{processes} processes were started for {option} {size}; start a multiple of {size}")
    layout = _sized(trained, tensor or processes // (pipeline or 1), pipeline or processes // (tensor or 1))
    if not _fits(layout, processes, copies):
        raise UserError(
            f"{processes} processes were started for --tensor {tensor} --pipeline {pipeline}; "
            f"start {layout.tensor * layout.pipeline}{' or a multiple of it' if copies else ''}"
        )
    return layout


def _sized(trained: ParallelConfig, tensor: int, pipeline: int) -> ParallelConfig:
    return dataclasses.replace(trained, tensor=tensor, pipeline=pipeline, virtual_pipeline=1)


def _fits(layout: ParallelConfig, processes: int, copies: bool) -> bool:
    one = layout.tensor * layout.pipeline
    return processes % one == 0 if copies else processes == one
