"""Near duplicates, against the Jaccard similarity computed exactly."""

from megafuser.data.recipe.near import NearDuplicates


def grams(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[start : start + 5]) for start in range(len(words) - 4)}


def test_what_is_near_and_what_is_not() -> None:
    near = NearDuplicates(0.8)
    words = [f"w{number}" for number in range(200)]
    text = " ".join(words)
    alike, unlike = " ".join([*words[:195], "end"]), " ".join(words[:120] + [f"x{number}" for number in range(80)])
    similarity = [len(grams(text) & grams(one)) / len(grams(text) | grams(one)) for one in (alike, unlike)]
    assert similarity[0] > 0.95 and similarity[1] < 0.5
    assert near.take("a", text) is None
    assert near.take("b", text.upper().replace(" ", "\n")) == "a"
    assert near.take("c", alike) == "a"
    assert near.take("d", unlike) is None
    assert near.take("e", unlike) == "d"


def test_texts_of_fewer_than_five_words() -> None:
    near = NearDuplicates(0.8)
    assert near.take("a", "one two") is None
    assert near.take("b", "One  two") == "a"
    assert near.take("c", "one three") is None
