"""A response on a terminal, each token on the colour of the specialists that carried it.

The colours themselves are `figures.palette`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megafuser.figures.palette import blend, specialist_colours
from megafuser.inference.step_messages import Prediction
from megafuser.inference.text import TextStream

_RESET = "\x1b[0m"


def token_texts(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    """What each token adds to the text; the parts of a character that several make stand with the last of them.

    Args:
        tokenizer: the first specialist's.
        ids: of a response.
        prompt: ids with whose text this one goes on, if any.
    """
    stream = TextStream(tokenizer, prompt=prompt)
    texts = [stream.add(token) for token in ids]
    rest = stream.finish()
    if texts:
        texts[-1] += rest
    return texts


def coloured(texts: Sequence[str], predictions: Sequence[Prediction], specialists: Sequence[str]) -> str:
    """ANSI text with 24-bit backgrounds, a legend of the specialists and their mean weights above it.

    Args:
        texts: of the tokens.
        predictions: of the same tokens.
        specialists: names, in order.
    """
    colours = specialist_colours(specialists)
    weights = np.array([prediction.gate for prediction in predictions]).reshape(-1, len(specialists))
    means = weights.mean(axis=0) if len(weights) else np.zeros(len(specialists))
    legend = "  ".join(
        f"{_on(colours[name])} {name} {mean:.2f} {_RESET}" for name, mean in zip(specialists, means, strict=True)
    )
    body = "".join(
        # a line's end would take the background along to the end of the line
        "\n".join(f"{_on(colour)}{part}{_RESET}" if part else "" for part in text.split("\n"))
        for text, colour in zip(texts, blend(weights, list(colours.values())), strict=True)
    )
    return f"{legend}\n{body}"


def listed(texts: Sequence[str], predictions: Sequence[Prediction], specialists: Sequence[str]) -> str:
    """The same without colours: a line per token with the specialist that has the highest weight, and all weights."""
    lines = []
    for text, prediction in zip(texts, predictions, strict=True):
        leader = specialists[int(np.argmax(prediction.gate))]
        weights = " ".join(f"{name}={weight:.3f}" for name, weight in zip(specialists, prediction.gate, strict=True))
        lines.append(f"{text!r:24} {leader:12} {weights}")
    return "\n".join(lines)


def _on(colour: str) -> str:
    """Black letters on `#rrggbb`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m"
