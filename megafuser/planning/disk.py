"""What a stage's checkpoints take of the disk, at most.

The host memory that saving takes is `planning.checkpoint_memory`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megafuser.config.schema import RunConfig
from megafuser.fusion.gate_shapes import gate_shapes
from megafuser.specialist.card import ArchitectureCard

_MASTER_AND_MOMENTS = 12  # bytes of a trained parameter: float32, three times
_WEIGHT = {"fp32": 4, "bf16": 2}
_BESIDES = 64 << 20  # tokenizers, indices, metrics


@dataclass(frozen=True)
class DiskSpace:
    """A stage's checkpoints.

    Attributes:
        checkpoint: bytes of one, at most.
        count: those that are there at the same time, at most: what is kept, and one that is being written.
    """

    checkpoint: int
    count: int

    @property
    def at_once(self) -> int:
        """Bytes of all of them."""
        return self.count * self.checkpoint


def disk_space(
    config: RunConfig,
    stage: str,
    cards: Mapping[str, ArchitectureCard],
    present: Sequence[int] = (),
    other_bests: int = 0,
) -> DiskSpace:
    """What the checkpoints of a stage take.

    A checkpoint has weights, their float32 masters and both moments of what the stage trains. The best one is kept
    beside the newest where it is not among them.

    Args:
        config: the run's configuration.
        stage: `warmup` or `joint`.
        cards: the specialists' architectures, by name.
        present: steps of the checkpoints that are there already. One of them may be of a stop between two saves.
        other_bests: how many of them are kept as the best of validations of other samples.
    """
    shapes = gate_shapes([card.hidden_size for card in cards.values()], config.gate.hidden_size)
    gate = sum(math.prod(shape) for shape in shapes.values())
    saved = trained = gate
    if stage == "joint":
        saved += sum(card.parameter_count() for card in cards.values())
        trained += sum(cards[name].parameter_count() for name in config.trained(stage))
    size = saved * _WEIGHT[config.precision.dtype] + trained * _MASTER_AND_MOMENTS + _BESIDES
    kept = config.checkpoint.keep + config.checkpoint.keep_best + other_bests
    last, steps, interval = max(present, default=0), config.stage(stage).steps, config.checkpoint.interval
    saves = math.ceil(steps / interval) - last // interval if last < steps else 0
    return DiskSpace(size, len(present) + max(0, min(kept + 1 - len(present), saves)))
