"""Tokens on the colours of the specialists that carried them, as a terminal gets them."""

import re

import pytest

from megafuser.inference.step_messages import Prediction
from megafuser.inference.terminal_colours import coloured, listed, token_texts
from tests.tiny_models import make_tokenizer

NAMES = ("text", "code")
GATES = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
TEXTS = ("The", " fox\n\n", "\njumps")


def predictions():
    return [Prediction(token=5, logprob=-1.0, is_greedy=True, top=(), gate=gate) for gate in GATES]


def backgrounds(text):
    """(text, background) of each stretch; fails where anything has none but a line's end."""
    stretches = re.findall(r"\x1b\[38;2;0;0;0;48;2;(\d+);(\d+);(\d+)m(.*?)\x1b\[0m|(\n)", text, re.DOTALL)
    assert "".join(part + end for *_, part, end in stretches) == re.sub(r"\x1b\[[\d;]*m", "", text)
    return [(part, tuple(map(int, colour))) for *colour, part, end in stretches if not end]


def test_a_token_stands_on_what_carried_it():
    legend, body = coloured(TEXTS, predictions(), NAMES).split("\n", 1)
    assert re.sub(r"\x1b\[[\d;]*m", "", legend) == " text 0.50    code 0.50 "
    found = backgrounds(body)
    assert [part for part, _ in found] == ["The", " fox", "jumps"]  # no background at a line's end
    (first, second, both) = (colour for _, colour in found)
    assert len({first, second, both}) == 3
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], abs=1)
    # blue is the first specialist's, orange the second's
    assert max(range(3), key=first.__getitem__) == 2
    assert max(range(3), key=second.__getitem__) == 0


def test_without_colours_a_line_says_who_leads():
    lines = listed(TEXTS, predictions(), NAMES).splitlines()
    assert lines[0].split() == ["'The'", "text", "text=1.000", "code=0.000"]
    assert lines[1].split("code", 1) == [f"{' fox' + chr(10) * 2!r:24} ", f"{'':9}text=0.000 code=1.000"]
    assert coloured([], [], NAMES).endswith("\n")


def test_the_parts_of_a_character_stand_with_its_last_token(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    ids = tokenizer("a é", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert texts[-2:] == ["", "é"]
    # one that is never finished stands with the last token
    assert token_texts(tokenizer, ids[:-1])[-1] == "�"
    assert token_texts(tokenizer, []) == []
