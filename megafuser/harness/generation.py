"""What a task's `generation_kwargs` mean here.

Choosing the tokens is `inference.sampling`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from megafuser.errors import UserError
from megafuser.inference.sampling import SamplingParameters

DEFAULT_MAX_GEN_TOKS = 256  # the harness's own Hugging Face model has the same
# what changes nothing at this value
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}


@dataclass(frozen=True)
class Generation:
    """How a request is answered.

    Attributes:
        max_tokens: most tokens of the response, the end id included.
        stop: strings that end it.
        sampling: how tokens are chosen.
    """

    max_tokens: int
    stop: tuple[str, ...]
    sampling: SamplingParameters


def draws_seed(context: str, values: Mapping[str, Any], repeat: int) -> int:
    """The seed of a request's draws: another one for each request and each of its repeats, always the same for these.

    One seed for all would make the draws of different questions the same ones, and their mean less sure than its
    standard error says.
    """
    text = json.dumps([context, values, repeat], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def parse_generation(values: Mapping[str, Any], *, end: str | None, seed: int = 0) -> Generation:
    """Reads a request's settings as the harness's Hugging Face model reads them.

    Args:
        values: of the task.
        end: text of the id that ends a response.
        seed: of the draws, where there are any.

    Raises:
        UserError: one that has no counterpart here, or a wrong value.
    """
    try:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(values), DEFAULT_MAX_GEN_TOKS))
        stop = handle_stop_sequences(kwargs.pop("until", None), eos=end)
        max_tokens = int(kwargs.pop("max_gen_toks"))
        temperature = float(kwargs.pop("temperature", 0.0))
        is_drawn = bool(kwargs.pop("do_sample", False))
        sampling = SamplingParameters(
            temperature=temperature if is_drawn else 0.0,
            top_p=float(kwargs.pop("top_p", 1.0)),
            top_k=int(kwargs.pop("top_k", 0)),
            repetition_penalty=float(kwargs.pop("repetition_penalty", 1.0)),
            seed=seed,
        )
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"generation_kwargs {dict(values)}: {error}; correct the task") from None
    for name, value in kwargs.items():
        if name not in _NEUTRAL or value != _NEUTRAL[name]:
            raise UserError(f"generation_kwargs.{name}: {value!r} has no meaning here; take it out of the task")
    if is_drawn and temperature == 0.0:
        raise UserError("generation_kwargs: do_sample needs a temperature above 0; correct the task")
    if max_tokens < 1:
        raise UserError(f"generation_kwargs.max_gen_toks is {max_tokens}; it must be at least 1")
    return Generation(max_tokens, tuple(stop), sampling)
