"""Benchmark texts are found whatever stands around them, and twelve common words are no leak."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafuser.data.decontamination import BenchmarkItem, NgramIndex, ngrams
from megafuser.data.decontamination.ngrams import FEWEST_WORDS
from megafuser.data.decontamination.words import BOUNDARY, ascii_words, is_plain, words

QUESTION = (
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning, and bakes 4,933 muffins for her "
    "friends with (what is) left over!"
)


def index(*texts: str, ngram: int = 13) -> NgramIndex:
    return NgramIndex((BenchmarkItem("b", str(i), "question", text) for i, text in enumerate(texts)), ngram)


def test_words_are_lower_case_letters_and_digits():
    assert words("Don't  STOP: f(a,b)\tcosts 3,000.50 — ﬁne_print!") == [
        *("dont", "stop", "f", "a", "b", "costs", "3000", "50", "fine", "print"),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("f([1.0,2.8], (0,0),(3,10))", "f( [1.0, 2.8],\n(0, 0), (3, 10) )"),
        ("1,234,567 apples", "1234567 apples"),
        ("Straße", "STRASSE"),
        ("x,123", "x, 123"),
        ("1,2345", "1, 2345"),
    ],
)
def test_layout_changes_no_word(one, other):
    assert words(one) == words(other)
    for text in filter(is_plain, (one, other)):
        assert ascii_words([text, text]) == [*words(text), BOUNDARY] * 2


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


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="aB'’.,1 23_\nÉßİ-\x01\x00K٣ÿ", max_size=12), max_size=5))
def test_plain_texts_have_the_same_words_all_at_once(texts):
    plain = [text for text in texts if is_plain(text)]
    expected = [word for text in plain for word in (*words(text), BOUNDARY)]
    assert ascii_words(plain) == expected


WORDS = st.lists(st.sampled_from(["a", "b", "ÿ", "c'd", "1,5", "\x01"]), max_size=30).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, max_size=6), st.integers(3, 13))
def test_what_is_found_is_what_sets_of_windows_have_in_common(items, texts, ngram):
    """A dense reference: the windows of each as sets, compared one with the other."""

    def windows(text: str, length: int) -> list[str]:
        own = words(text)
        return [" ".join(own[start : start + length]) for start in range(len(own) - length + 1)]

    sought = {
        number: min(ngram, len(words(item)))
        for number, item in enumerate(items)
        if len(words(item)) >= min(FEWEST_WORDS, ngram)
    }
    found = index(*items, ngram=ngram)
    searched = found.search(texts)
    for number, text in enumerate(texts):
        common = {
            item: [gram for gram in windows(text, length) if gram in windows(items[item], length)]
            for item, length in sought.items()
        }
        grams = {gram for own in common.values() for gram in own}
        assert {found.spelled(key) for key in searched.get(number, np.zeros(0, np.uint64)).tolist()} == grams
        hits = {int(hit.item.where): hit for hit in found.find_all(text)}
        assert hits.keys() == {item for item, own in common.items() if own}
        assert all(hit.ngram == common[item][0] for item, hit in hits.items())
        ignored = set(searched[number].tolist()) if number in searched else set()
        assert found.find_all(text, ignored) == []


def test_equal_hashes_of_other_words_are_no_hit(monkeypatch):
    """With a multiplier of zero all windows with the same first word have one hash."""
    monkeypatch.setattr(ngrams, "_BASE", 0)
    found = index(QUESTION)
    other = QUESTION.split()[0] + " " + "word " * 20
    assert found.find(other) is None and found.search([other]) == {}
    assert found.find(QUESTION) is not None and list(found.search(["no", QUESTION])) == [1]
