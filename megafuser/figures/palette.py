"""Colours of the specialists: distinct to colour-blind readers, the same in plots and texts.

It draws nothing: `report.plots`, `watching.gate_pictures` and others do.
"""

import colorsys
from collections.abc import Sequence

import numpy as np

# Okabe and Ito's, less the black; first those whose blends are told apart best.
_NAMED = ("#0072b2", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#56b4e9", "#f0e442")
UNIFORM, ORACLE = "#8c8c8c", "#c9c9c9"
# How much of a token's background is white: dark letters stay legible on it.
_WHITE = 0.35


def specialist_colours(specialists: Sequence[str]) -> dict[str, str]:
    """A colour, `#rrggbb`, for each specialist."""
    colours = list(_NAMED)
    for index in range(len(specialists) - len(colours)):
        # Steps of the golden ratio around the circle never come close to each other soon.
        rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.55, 0.8)
        colours.append(_hex(np.array(rgb) * 255))
    return dict(zip(specialists, colours, strict=False))


def blend(weights: np.ndarray, colours: Sequence[str]) -> list[str]:
    """Backgrounds of tokens: the specialists' colours mixed by the gate's weights, on white.

    Args:
        weights: [t, K], rows sum to one; rows that are not numbers, as of a model that diverged, become white.
        colours: K times `#rrggbb`.

    Returns:
        t times `#rrggbb`.
    """
    table = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], dtype=float)
    mixed = np.nan_to_num((1 - _WHITE) * (weights @ table) + _WHITE * 255, nan=255.0)
    return [_hex(row) for row in mixed]


def _hex(rgb: np.ndarray) -> str:
    return "#" + "".join(f"{round(float(value)):02x}" for value in np.clip(rgb, 0, 255))
