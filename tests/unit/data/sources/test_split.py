"""The split by the instruction: a share of them, the same ones whatever else a sample has."""

import pytest

from megafuser.data.sources.samples import Sample
from megafuser.data.sources.split import in_valid


def sample(instruction: str, response: str = "a", **more: str) -> Sample:
    return Sample(((instruction, response), ("later", "b")), more.get("system"), more.get("id", "x"))


@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_about_the_share_validates(fraction):
    count = sum(in_valid(sample(f"question {n}"), fraction) for n in range(20_000))
    assert abs(count / 20_000 - fraction) < 4 * (fraction / 20_000) ** 0.5


def test_only_the_words_of_the_first_instruction_count():
    picked = {n: in_valid(sample(f"how is {n}"), 0.5) for n in range(200)}
    assert picked == {n: in_valid(sample(f" how\n is\t\t{n} ", "b", system="s", id="y"), 0.5) for n in range(200)}
    assert len(set(picked.values())) == 2


def test_a_larger_share_keeps_those_of_a_smaller_one_and_the_choice_is_fixed():
    small, large = ({n for n in range(2000) if in_valid(sample(f"q{n}"), share)} for share in (0.05, 0.2))
    assert small < large
    # Written out, since another choice in another version would put training samples into validation.
    assert sorted(small)[:5] == [22, 23, 49, 96, 108]
