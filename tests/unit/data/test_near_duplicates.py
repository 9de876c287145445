"""Near duplicates, against the Jaccard similarity computed exactly."""

from megafuser.data.near_duplicates import NearDuplicates, sketch


def grams(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[start : start + 5]) for start in range(len(words) - 4)}


def take(near: NearDuplicates, identity: str, text: str) -> str | None:
    found = near.take(identity, sketch(text))
    return found[0] if found else None


def test_what_is_near_and_what_is_not() -> None:
    near = NearDuplicates(0.8)
    words = [f"w{number}" for number in range(200)]
    text = " ".join(words)
    alike, unlike = " ".join([*words[:195], "end"]), " ".join(words[:120] + [f"x{number}" for number in range(80)])
    similarity = [len(grams(text) & grams(one)) / len(grams(text) | grams(one)) for one in (alike, unlike)]
    assert similarity[0] > 0.95 and similarity[1] < 0.5
    assert take(near, "a", text) is None
    assert take(near, "b", text.upper().replace(" ", "\n")) == "a"
    assert take(near, "c", alike) == "a"
    found = near.take("c", sketch(alike))
    assert found is not None and abs(found[1] - similarity[0]) < 0.1
    assert take(near, "d", unlike) is None
    assert take(near, "e", unlike) == "d"


def test_most_pairs_above_the_threshold_are_found() -> None:
    """The index alone, at the threshold, would miss a third of those just above it."""
    found, above = 0, 0
    for pair in range(40):
        words = [f"w{pair}_{number}" for number in range(400)]
        # five-grams in common: about 0.83
        one, other = " ".join(words), " ".join([*words[:364], *(f"x{pair}_{number}" for number in range(36))])
        near = NearDuplicates(0.8)
        assert near.take("a", sketch(one)) is None
        above += sketch(one).jaccard(sketch(other)) >= 0.8
        found += near.take("b", sketch(other)) is not None
    assert above > 20 and found >= 0.95 * above


def test_a_threshold_of_one_takes_equal_texts_only() -> None:
    near = NearDuplicates(1.0)
    assert take(near, "a", "one two three four five six") is None
    assert take(near, "b", "one two three four five seven") is None
    assert take(near, "c", "ONE two three four five six") == "a"


def test_texts_of_fewer_than_five_words() -> None:
    near = NearDuplicates(0.8)
    assert take(near, "a", "one two") is None
    assert take(near, "b", "One  two") == "a"
    assert take(near, "c", "one three") is None
