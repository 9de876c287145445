"""How a model that is used is spread over the processes, where nobody says it."""

import dataclasses
from collections.abc import Mapping

from megafuser.config.compute import ParallelConfig
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.runtime.world import World
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.layout_checks import check_layout


def spread(
    config: RunConfig,
    cards: Mapping[str, ArchitectureCard],
    world: World,
    *,
    tensor: int | None = None,
    pipeline: int | None = None,
) -> ParallelConfig:
    """One copy of the model over all processes.

    As the user says; else as in training, where that was over as many; else by the largest tensor-parallel size within
    a node that suits every specialist, the rest by pipeline stages.

    Args:
        config: the checkpoint's, with the layout that it was trained in.
        cards: the specialists' architectures, by name.
        world: the processes.
        tensor: tensor-parallel size that the user wants; 1 where only the other is given.
        pipeline: pipeline stages, likewise.

    Raises:
        UserError: the sizes do not make the number of processes, or none suits the specialists.
    """
    if tensor is not None or pipeline is not None:
        asked = ParallelConfig(tensor=tensor or 1, pipeline=pipeline or 1)
        processes = asked.tensor * asked.pipeline
        if world.size != processes:
            raise UserError(
                f"{world.size} processes were started for --tensor {asked.tensor} --pipeline {asked.pipeline}; "
                f"start {processes}"
            )
        return asked
    trained = ParallelConfig(tensor=config.parallel.tensor, pipeline=config.parallel.pipeline)
    sizes = [size for size in range(min(world.local_size, world.size), 0, -1) if world.size % size == 0]
    candidates = [ParallelConfig(tensor=size, pipeline=world.size // size) for size in sizes]
    if trained.tensor * trained.pipeline == world.size:
        candidates.insert(0, trained)
    for candidate in candidates:
        try:
            check_layout(cards, dataclasses.replace(config, parallel=candidate), world.size)
        except UserError as error:
            refusal = error
        else:
            return candidate
    raise refusal
