"""Rows on their way to a domain's files: what is kept, in which order, and as which lines."""

from pathlib import Path
from typing import Any

import pytest

from megafuser.data.recipe.candidates import Filter, Spill, as_record, content, first_instruction, record_texts
from megafuser.data.recipe.config import Lengths, RecipeDomain, RecipeSource
from megafuser.data.sources.records import BadRecord
from megafuser.data.sources.samples import Sample

SOURCE = RecipeSource(dataset="org/name", license="MIT")


def sample(*turns: tuple[str, str], system: str | None = None) -> Sample:
    return Sample(turns, system, "id")


def rules(seen: set[bytes] | None = None, domain: dict[str, Any] | None = None, **source: Any) -> Filter:
    made = RecipeSource(dataset="org/name", license="MIT", **source)
    return Filter(made, RecipeDomain(samples=1, sources=(made,), **(domain or {})), set() if seen is None else seen)


def test_the_order_depends_on_seed_and_id_alone(tmp_path: Path) -> None:
    def order(ids: list[str], seed: int) -> list[str]:
        with Spill(tmp_path / "spill", seed) as spill:
            for number, identity in enumerate(ids):
                spill.add({"id": identity, "text": "é\n" * number}, number % 3)
            found = list(spill.drawn())
        assert [source for source, _ in found] == [ids.index(one["id"]) % 3 for _, one in found]
        assert all(one["text"] == "é\n" * ids.index(one["id"]) for _, one in found)
        return [one["id"] for _, one in found]

    ids = [f"set:{number}" for number in range(50)]
    first = order(ids, 1)
    assert sorted(first) == sorted(ids) and first != ids
    assert order(ids[::-1], 1) == first and order(ids, 2) != first
    # Those that are not there change nothing about the order of the others.
    assert order(ids[:25], 1) == [one for one in first if one in ids[:25]]
    assert not list(tmp_path.iterdir())


def test_the_first_turn_alone() -> None:
    chat = sample(("a", "b"), ("c", "d"), system="s")
    kept = rules(turns="first").candidate({}, chat)
    assert kept is not None and kept.turns == (("a", "b"),) and kept.system == "s"
    kept = rules().candidate({}, chat)
    assert kept is not None and kept.turns == chat.turns


def test_copies_over_all_data_sets_but_for_white_space() -> None:
    seen: set[bytes] = set()
    one, other = rules(seen), rules(seen)
    assert one.candidate({}, sample(("a b", "c"))) is not None
    assert other.candidate({}, sample((" a\n b", "c "))) is None
    assert other.candidate({}, sample(("a b", "c"), ("a b", "c"))) is not None
    assert other.counts == {"read": 2, "duplicates": 1}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (sample(("a", "b c")), sample(("a b", "c"))),
        (sample(("b", "c"), system="a"), sample(("a", "b"), ("c", "c"))),
        (sample(("a", "b")), sample(("A", "b"))),
    ],
)
def test_other_samples_are_no_copies(a: Sample, b: Sample) -> None:
    assert content(a) != content(b)


def test_rows_are_chosen_by_their_other_columns() -> None:
    chosen = rules(columns={"kind": "^data/CoT"}, not_columns={"kind": "camel"})
    kinds = ["data/CoT/gsm.json", "data/CoT/camel.json", "data/PoT/gsm.json"]
    kept = [chosen.candidate({"kind": kind}, sample((kind, "x"))) is not None for kind in kinds]
    assert kept == [True, False, False] and chosen.counts["filtered by column"] == 2


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [
        (Lengths(), True),
        (Lengths(min_characters=10), True),
        (Lengths(min_characters=11), False),
        (Lengths(max_characters=10), True),
        (Lengths(max_characters=9), False),
        (Lengths(min_response_characters=5), False),
        (Lengths(max_response_characters=4), True),
        (Lengths(max_response_characters=3), False),
    ],
)
def test_bounds_include_their_ends(lengths: Lengths, kept: bool) -> None:
    found = rules(domain={"lengths": lengths}).candidate({}, sample(("abcd", "1234"), system="ss"))
    assert (found is not None) == kept


def test_a_pattern_in_any_text() -> None:
    for one in (sample(("a bad b", "c")), sample(("a", "b"), ("c", "bad")), sample(("a", "b"), system="bad")):
        chosen = rules(domain={"reject": ("bad",)})
        assert chosen.candidate({}, one) is None and chosen.counts["filtered by pattern"] == 1


def test_what_makes_no_sample_is_counted_by_kind() -> None:
    chosen = rules()
    assert chosen.candidate({}, BadRecord("x: row 1", "`response` is empty", "empty response")) is None
    assert chosen.counts == {"read": 1, "unusable": 1} and chosen.bad == {"empty response": 1}


def test_lines() -> None:
    head = {"id": "1", "source": "org/name", "license": "MIT"}
    plain = as_record(sample(("a", "b")), "1", SOURCE)
    assert plain == {**head, "instruction": "a", "response": "b"} and record_texts(plain) == ["a", "b"]
    chat = as_record(sample(("a", "b"), system="s"), "1", SOURCE)
    assert [one["role"] for one in chat["messages"]] == ["system", "user", "assistant"]
    assert record_texts(chat) == ["s", "a", "b"]
    for one in (plain, chat, as_record(sample(("a", "b"), ("c", "d")), "1", SOURCE)):
        assert first_instruction(one).turns == (("a", "b"),)
