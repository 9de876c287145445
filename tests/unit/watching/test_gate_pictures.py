"""Pictures of the gate: the right colours at the right places."""

import numpy as np
import pytest
from matplotlib import colormaps

from megafuser.figures.palette import blend, specialist_colours
from megafuser.watching.gate_pictures import COLUMNS, coloured_text, gate_matrix
from tests.unit.watching.made_up import excerpt

SPECIALISTS = ["a", "b", "c"]


def colours_of(picture: np.ndarray) -> dict[tuple[int, ...], int]:
    """How many pixels have each colour."""
    found, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(colour.tolist()): int(count) for colour, count in zip(found, counts, strict=True)}


def boxes(picture: np.ndarray, colour: str) -> np.ndarray:
    """Rows and columns of the pixels of a colour `#rrggbb`, [n, 2]."""
    return np.argwhere((picture == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2))


def test_a_matrix_has_a_cell_for_each_weight_in_its_place() -> None:
    weights = np.array([[0.9, 0.1], [0.25, 0.75], [0.5, np.nan]])
    picture = gate_matrix(weights, ["text", "code", "a $domain$"], ["x", "y_1"])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    middles = []
    for weight in (0.9, 0.1, 0.25, 0.75, 0.5):
        rgb = (np.array(colormaps["Blues"](weight)[:3]) * 255).round().astype(int)
        place = np.argwhere((np.abs(picture.astype(int) - rgb) <= 1).all(axis=2))
        assert len(place) > 2000, weight
        middles.append(np.median(place, axis=0))
    (top_left, top_right, left, right, bottom) = middles
    assert top_left[0] == pytest.approx(top_right[0], abs=2) and left[0] == pytest.approx(right[0], abs=2)
    assert top_left[0] < left[0] < bottom[0]
    assert top_left[1] == pytest.approx(left[1], abs=2) and top_left[1] < top_right[1]


def test_a_picture_of_many_domains_is_larger() -> None:
    small, large = (gate_matrix(np.full((n, n), 0.5), ["d"] * n, ["s"] * n) for n in (2, 6))
    assert large.shape[0] > small.shape[0] and large.shape[1] > small.shape[1]


def test_tokens_stand_on_the_mixed_colours_of_their_weights() -> None:
    weights = [[0.8, 0.2, 0.0], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6]]
    picture = coloured_text(excerpt(["first ", "second", "\nthird"], weights), SPECIALISTS)
    mixed = blend(np.array(weights), list(specialist_colours(SPECIALISTS).values()))
    first, second, third = (boxes(picture, colour) for colour in mixed)
    assert min(len(first), len(second), len(third)) > 300
    # the second goes on behind the first, the third is on a line of its own, at its beginning
    assert np.median(first[:, 0]) == pytest.approx(np.median(second[:, 0]), abs=3)
    assert first[:, 1].max() <= second[:, 1].min() + 1
    assert third[:, 0].min() > first[:, 0].max() - 1
    assert third[:, 1].min() == pytest.approx(first[:, 1].min(), abs=1)
    # a letter takes the same width everywhere
    assert np.ptp(second[:, 1]) == pytest.approx(np.ptp(first[:, 1]), abs=3)


def test_all_specialists_are_in_the_key() -> None:
    """In the colours that a token has with all weight on one."""
    picture = coloured_text(excerpt(["x"], [[1.0, 0.0, 0.0]]), SPECIALISTS)
    for colour in blend(np.eye(3), list(specialist_colours(SPECIALISTS).values())):
        assert len(boxes(picture, colour)) > 200


def test_long_lines_are_broken_and_odd_characters_drawn() -> None:
    one = coloured_text(excerpt(["x" * COLUMNS], [[1.0, 0.0, 0.0]]), SPECIALISTS)
    three = coloured_text(excerpt(["x" * (2 * COLUMNS + 1)], [[1.0, 0.0, 0.0]]), SPECIALISTS)
    assert three.shape[1] == one.shape[1] and three.shape[0] > one.shape[0] + 30
    odd = coloured_text(excerpt(["你好", "$x^", "", "\t"], [[1.0, 0.0, 0.0]] * 4), SPECIALISTS)
    assert odd.shape == one.shape
    assert coloured_text(excerpt([""], [[1.0, 0.0, 0.0]]), SPECIALISTS).shape[1] == one.shape[1]
