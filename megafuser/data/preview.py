"""Samples as every specialist sees them, for a person to read: prompts, trained positions, control tokens.

Which samples are shown is `data.first_samples`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from megafuser.data.tokenized import TokenizedDomain


class Style(NamedTuple):
    """What stands around trained tokens and around control tokens."""

    trained: tuple[str, str]
    control: tuple[str, str]

    @property
    def legend(self) -> str:
        """Says what the marks mean."""
        trained, control = "".join([self.trained[0], "trained", self.trained[1]]), "control token".join(self.control)
        return f"{trained}: predicted, and counted in the loss; {control}: one id, and no text"


# Green and underlined; the other way round for control tokens.
TERMINAL = Style(("\x1b[32;4m", "\x1b[0m"), ("\x1b[7m", "\x1b[27m"))
PLAIN = Style(("⟦", "⟧"), ("⟨", "⟩"))


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of one kind.

    Attributes:
        ids: of the tokens.
        text: what they add to the text before them.
        trained: whether they are predicted and counted in the loss.
        control: whether they are control tokens, as BOS and the end of a response.
    """

    ids: list[int]
    text: str
    trained: bool
    control: bool


def show(
    domain: TokenizedDomain,
    sample: int,
    tokenizers: Sequence[Any],
    names: Sequence[str],
    *,
    style: Style = PLAIN,
    ids: bool = False,
) -> Iterator[str]:
    """One sample as lines of text.

    Args:
        domain: the tokenized domain.
        sample: index in it.
        tokenizers: of the K specialists.
        names: of the K specialists.
        style: how trained and control tokens are marked.
        ids: every token by itself, with its id.
    """
    count = int(domain.response_lengths[sample])
    yield f"── {domain.name}: {domain.sample_id(sample)}: {count} trained tokens"
    for specialist, (name, tokenizer) in enumerate(zip(names, tokenizers, strict=True)):
        view, positions = domain.view(sample, specialist)
        trained = np.zeros(len(view), dtype=bool)
        # A position predicts the token behind it.
        trained[positions + 1] = True
        found = runs(tokenizer, view.tolist(), trained)
        yield f"{name}, {len(view)} tokens:"
        if ids:
            yield from _listed(tokenizer, found, style)
        else:
            yield from _joined(found, style).split("\n")
        yield ""


def runs(tokenizer: Any, ids: Sequence[int], trained: np.ndarray) -> list[Run]:
    """Cuts a view where training begins or ends, and around each control token.

    Args:
        tokenizer: a Hugging Face tokenizer.
        ids: of the view.
        trained: `[len(ids)]` bool.
    """
    special = control_ids(tokenizer)
    control = np.array([token in special for token in ids], dtype=bool)
    starts = [
        index
        for index in range(len(ids))
        if index == 0 or control[index] or control[index - 1] or trained[index] != trained[index - 1]
    ]
    made, before = [], ""
    for start, end in pairwise([*starts, len(ids)]):
        own = list(ids[start:end])
        after = _decode(tokenizer, ids[:end])
        # A token alone decodes to another text (leading blanks go), so the text is what it adds.
        text = after[len(before) :] if after.startswith(before) else _decode(tokenizer, own)
        made.append(Run(own, text, bool(trained[start]), bool(control[start])))
        before = after
    return made


def control_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that stand for no text."""
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return added | set(tokenizer.all_special_ids)


def _joined(found: Sequence[Run], style: Style) -> str:
    """The whole text with its marks; what is trained on, control tokens included, lies within one pair of them."""
    text, inside = "", False
    for run in found:
        if run.trained != inside:
            text += style.trained[0 if run.trained else 1]
            inside = run.trained
        shown = visible(run.text)
        text += shown.join(style.control) if run.control else shown
    return text + (style.trained[1] if inside else "")


def _listed(tokenizer: Any, found: Sequence[Run], style: Style) -> Iterator[str]:
    """A line for each run: ids with the tokenizer's own names of them."""
    for run in found:
        names = tokenizer.convert_ids_to_tokens(run.ids)
        tokens = " ".join(f"{token}:{visible(str(name))}" for token, name in zip(run.ids, names, strict=True))
        if run.control:
            tokens = tokens.join(style.control)
        yield "  " + (tokens.join(style.trained) if run.trained else tokens)


def visible(text: str) -> str:
    """Gives control characters a picture, so that no data can steer a terminal; line ends and tabs stay."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    return f"\\x{code:02x}" if 0x80 <= code < 0xA0 else character


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
