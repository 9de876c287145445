"""What a step is asked of each sequence, and what it answers; both travel between ranks.

How they travel is `inference.engine`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megafuser.inference.sampling import SamplingParameters


@dataclass(frozen=True)
class Ask:
    """One sequence's part in a step.

    Positions that predict are the last ones of the new tokens: first those with a target, then, where a token is to be
    chosen, the very last one.

    Attributes:
        start: where the sequence's extent begins.
        past: K numbers of cached positions.
        ids: K lists of new tokens. Lists may differ in length, since prompts do; what is predicted is aligned on the
            right.
        targets: tokens to be scored.
        sampling: how a token is to be chosen; None: not at all.
        prompt: see `choose`.
        response: see `choose`.
        drawn: see `choose`.
        top: how many of the most probable tokens are wanted at each position.
        with_logits: whether the logits of all predictions are wanted.
    """

    start: int
    past: tuple[int, ...]
    ids: tuple[Sequence[int], ...]
    targets: Sequence[int] = ()
    sampling: SamplingParameters | None = None
    prompt: Sequence[int] = ()
    response: Sequence[int] = ()
    drawn: int = 0
    top: int = 0
    with_logits: bool = False

    @property
    def outputs(self) -> int:
        """How many positions predict."""
        return len(self.targets) + (self.sampling is not None)


@dataclass(frozen=True)
class Prediction:
    """One token, of the target's or of the model's choice.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability in the fused distribution, before penalties and temperature.
        is_greedy: whether no other token is more probable.
        top: the most probable tokens with their logprobs, in order.
        gate: K weights.
        logits: V of them, as float32, where they were asked for.
    """

    token: int
    logprob: float
    is_greedy: bool
    top: tuple[tuple[int, float], ...]
    gate: tuple[float, ...]
    logits: Sequence[float] = field(default=(), repr=False)


# what one step is: its asks, and K weights in the gate's place
Step = tuple[list[Ask], tuple[float, ...] | None]
