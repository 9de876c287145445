"""Samples with the gate's choices as Markdown.

TensorBoard takes all colours out of what it shows as text, so a square in the colour of the specialist with the highest
weight stands in front of its tokens; the mixed colours are in the pictures. Choosing the samples is
`watching.excerpts`.
"""

from collections.abc import Sequence

import numpy as np

from megafuser.watching.excerpts import Excerpt, ExcerptTurn

# in the order of `figures.palette`: blue, orange, purple, green, red; then what is left
SQUARES = "🟦🟧🟪🟩🟥🟫🟨⬛"
_ESCAPES = str.maketrans(
    # no backslash escapes the last of these
    {character: f"\\{character}" for character in "\\`*_{}[]()#+-.!|>"} | {"&": "&amp;", "<": "&lt;", "~": "&#126;"}
)


def markdown(excerpt: Excerpt, specialists: Sequence[str]) -> str:
    """The sample's prompt, and its responses with a mark wherever another specialist leads.

    Args:
        excerpt: the tokens and the gate's weights on them.
        specialists: names, in order.
    """
    marks = _marks(specialists)
    key = ", ".join(f"{mark} {_escaped(name)}" for mark, name in zip(marks, specialists, strict=True))
    weights = np.concatenate([turn.values.weights for turn in excerpt.turns])
    loss = float(np.concatenate([turn.values.fused for turn in excerpt.turns]).mean())
    means = ", ".join(
        f"{_escaped(name)} {weight:.2f}" for name, weight in zip(specialists, weights.mean(axis=0), strict=True)
    )
    head = (
        f"**{_escaped(excerpt.domain)}**, sample {_escaped(excerpt.sample_id)}: {excerpt.shown_tokens} of "
        f"{excerpt.response_tokens} response tokens, mean loss {loss:.3f}, mean weights {means}"
    )
    parts = [f"{key}", head]
    for turn in excerpt.turns:
        parts += ["> " + _escaped(turn.prompt), _response(turn, marks)]
    return "\n\n".join(parts)


def _response(turn: ExcerptTurn, marks: Sequence[str]) -> str:
    """Runs of tokens with the same leader."""
    leaders = turn.values.weights.argmax(axis=1)
    text, before = "", None
    for piece, leader in zip(turn.pieces, leaders, strict=True):
        if leader != before:
            text += marks[leader]
            before = leader
        text += _escaped(piece)
    return text


def _marks(specialists: Sequence[str]) -> list[str]:
    if len(specialists) <= len(SQUARES):
        return list(SQUARES[: len(specialists)])
    return [f"«{_escaped(name)}» " for name in specialists]


def _escaped(text: str) -> str:
    """Nothing in a text is Markdown or HTML.

    Its lines end with a tag, not with a newline: the page shows a newline beside the tag as a second one, and what
    stands behind an empty line, indented, would be Markdown's code.
    """
    return text.translate(_ESCAPES).replace("\n", "<br>")
