"""Benchmark texts are found whatever stands around them, and twelve common words are no leak."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafuser.data.decontamination import BenchmarkItem, NgramIndex
from megafuser.data.decontamination.words import words

QUESTION = (
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning, and bakes 4,933 muffins for her "
    "friends with (what is) left over!"
)


def index(*texts: str, ngram: int = 13) -> NgramIndex:
    return NgramIndex.build((BenchmarkItem("b", str(i), "question", text) for i, text in enumerate(texts)), ngram)


def test_words_are_lower_case_letters_and_digits():
    assert words("Don't  STOP: f(a,b)\tcosts 3,000.50 — ﬁne_print!") == [
        *("dont", "stop", "f", "a", "b", "costs", "300050", "fine", "print"),
    ]


@pytest.mark.parametrize(
    "leak",
    [
        QUESTION,
        QUESTION.upper().replace(" ", "\n\t "),
        QUESTION.replace(",", "").replace(".", " ;").replace("’", "'"),
        "word " * 5000 + QUESTION[20:].lower() + " word" * 5000,
    ],
)
def test_a_leak_is_found(leak):
    hit = index("something else entirely", QUESTION).find(leak)
    assert hit is not None and hit.item.text == QUESTION and len(hit.ngram.split()) == 13


def test_twelve_words_are_no_leak():
    twelve, thirteen = (" ".join(words(QUESTION)[:count]) for count in (12, 13))
    assert index(QUESTION).find(f"so {twelve} so") is None
    assert index(QUESTION).find(f"so {thirteen} so") is not None


def test_an_item_of_fewer_words_counts_as_a_whole_and_one_of_very_few_not_at_all():
    whole = "one two three four five six seven eight nine"
    found = index(whole, "what is two plus two")
    assert found.find(f"before, {whole.upper()} after") is not None
    assert found.find(whole.removesuffix(" nine")) is None
    assert found.find("what is two plus two") is None and [item.where for item in found.too_short] == ["1"]


WORD = st.text(alphabet="abc", min_size=1, max_size=2)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORD, min_size=13, max_size=40), st.data(), st.lists(WORD, max_size=20), st.lists(WORD, max_size=20))
def test_any_thirteen_words_of_an_item_are_found_whatever_stands_around_them(item, data, before, after):
    start = data.draw(st.integers(0, len(item) - 13))
    text = " ".join([*before, *item[start : start + 13], *after])
    assert index(" ".join(item)).find(text) is not None
