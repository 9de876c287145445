"""Colours: distinct, and blended by weights."""

import numpy as np

from megafuser.figures.palette import blend, specialist_colours


def test_every_specialist_has_its_own_colour() -> None:
    colours = specialist_colours([f"s{index}" for index in range(12)])
    assert len(colours) == len(set(colours.values())) == 12
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in colours.values())


def test_a_blend_lies_between_its_colours_by_weight() -> None:
    colours = ["#ff0000", "#0000ff"]
    red, blue, half, quarter = blend(np.array([[1, 0], [0, 1], [0.5, 0.5], [0.25, 0.75]]), colours)
    assert (red[1:3], blue[5:7]) == ("ff", "ff")
    assert red[3:5] == red[5:7] == blue[1:3]
    channel = [int(colour[1:3], 16) for colour in (blue, quarter, half, red)]
    assert abs(channel[1] - (0.75 * channel[0] + 0.25 * channel[3])) <= 1
    assert abs(channel[2] - (channel[0] + channel[3]) / 2) <= 1


def test_dark_letters_are_legible_on_every_background() -> None:
    names = [f"s{index}" for index in range(12)]
    for colour in blend(np.eye(12), list(specialist_colours(names).values())):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert (luminance + 0.05) / (0.007 + 0.05) >= 4.5, "WCAG's contrast of text against #10141c"


def test_weights_that_are_no_numbers_are_white() -> None:
    assert blend(np.array([[np.nan, np.nan], [1.0, 0.0]]), ["#ff0000", "#0000ff"])[0] == "#ffffff"
