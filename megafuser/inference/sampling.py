"""How the next token is chosen from the fused logits: penalties, temperature, top-k, top-p, a seed.

The processors are transformers', in the order in which its `generate` applies them, so that the same settings mean the
same. A draw depends on the request's seed and on how many tokens it has, and on nothing else: neither on what shares
its step, nor on the layout. The logits are mixed in `inference.predict`.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megafuser.errors import UserError

_LARGEST = 1e30  # of a score
_LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class SamplingParameters:
    """What a request asks for.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_p: keeps the most probable tokens that have this much together; 1 keeps all.
        top_k: keeps this many; 0 keeps all.
        repetition_penalty: divides positive, multiplies negative logits of tokens that the first specialist's prompt or
            the response has (Keskar et al., 2019); 1 changes nothing.
        frequency_penalty: subtracted for each time that the response has the token.
        presence_penalty: subtracted where the response has the token.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what has no meaning.

        Raises:
            UserError: names the parameter.
        """
        for name, value, low, high, open_low in (
            ("temperature", self.temperature, 0.0, math.inf, False),
            ("top_p", self.top_p, 0.0, 1.0, True),
            ("top_k", self.top_k, 0, math.inf, False),
            ("repetition_penalty", self.repetition_penalty, 0.0, math.inf, True),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0, False),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0, False),
        ):
            if not math.isfinite(value) or value < low or value > high or (open_low and value == low):
                least = f"above {low:g}" if open_low else f"at least {low:g}"
                most = "" if high == math.inf else f" and at most {high:g}"
                raise UserError(f"{name} must be {least}{most}, not {value}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be at least 0 and below 2^63, not {self.seed}")

    @property
    def needs_context(self) -> bool:
        """Whether the choice depends on the tokens before it."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


def choose(
    logits: torch.Tensor, parameters: SamplingParameters, prompt: Sequence[int], response: Sequence[int], drawn: int
) -> int:
    """The next token.

    Args:
        logits: [V] float32, of the shared vocabulary.
        parameters: the request's.
        prompt: ids of the first specialist's prompt; needed only where `parameters.needs_context`. Those beyond V are
            left out.
        response: ids so far; likewise.
        drawn: how many tokens the response has.
    """
    scores = logits[None].clone() if parameters.needs_context else logits[None]
    if parameters.frequency_penalty or parameters.presence_penalty:
        counts = torch.bincount(torch.tensor(response, dtype=torch.int64), minlength=scores.shape[1])[None].to(scores)
        scores -= parameters.frequency_penalty * counts + parameters.presence_penalty * (counts > 0)
    if parameters.repetition_penalty != 1.0:
        seen = [token for token in (*prompt, *response) if token < scores.shape[1]]
        ids = torch.tensor([seen], dtype=torch.int64, device=scores.device)
        scores = _processors().RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty)(ids, scores)
        # extreme penalties leave the range of float32
        scores = scores.nan_to_num(nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)
    if parameters.temperature == 0.0:
        return int(scores.argmax())
    scores = scores.cpu()
    # relative to the largest, a tiny temperature leaves only that one, and neither infinity nor NaN
    scores = (scores - scores.amax()) / max(parameters.temperature, _LEAST_TEMPERATURE)
    nothing = torch.empty(1, 0, dtype=torch.int64)
    if parameters.top_k:
        scores = _processors().TopKLogitsWarper(parameters.top_k)(nothing, scores)
    if parameters.top_p < 1.0:
        scores = _processors().TopPLogitsWarper(parameters.top_p)(nothing, scores)
    generator = torch.Generator().manual_seed(_mixed(parameters.seed, drawn))
    return int(torch.multinomial(scores[0].softmax(dim=-1), 1, generator=generator))


@functools.cache
def _processors():  # type: ignore[no-untyped-def]
    """transformers' module of them, which takes a second to import."""
    from transformers.generation import logits_process

    return logits_process


def _mixed(seed: int, drawn: int) -> int:
    """A seed of its own for each token: SplitMix64's finalizer (Steele et al., 2014) of both numbers, 63 bits."""
    mixed = (seed + (drawn + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) >> 1
