"""The samples that a fused run trains on, step by step, for the models that it is compared with."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from megafuser.data.sampler import Sampler


class FusedSteps(Protocol):
    """What an example's settings say of the fused run's steps."""

    @property
    def samples_per_domain(self) -> int:
        """Samples of each domain in a step of both stages."""

    @property
    def warmup_steps(self) -> int:
        """Steps of the gate's warm-up."""

    @property
    def joint_steps(self) -> int:
        """Steps of joint training."""


def drawn(
    settings: FusedSteps, seed: int, sizes: Sequence[int], stages: Sequence[str]
) -> Iterator[list[tuple[int, int]]]:
    """The (domain, sample) pairs of each step of the stages, one stage after the other.

    It asks the fused run's own sampler, which depends on the seed, the stage and the sizes alone; the samples' order
    is that of the files, as long as none was dropped for its length.
    """
    for stage in stages:
        sampler = Sampler(sizes, settings.samples_per_domain, True, seed, stage)
        for step in range(1, (settings.warmup_steps if stage == "warmup" else settings.joint_steps) + 1):
            yield [(domain, sample) for domain, sample in sampler.step(step).tolist()]
