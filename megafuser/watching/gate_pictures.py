"""Pictures of the gate as pixels: its mean weights by domain, and texts coloured by it."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from megafuser.figures.palette import blend, specialist_colours
from megafuser.watching.excerpts import Excerpt

COLUMNS = 96
"""Characters of a line of text."""
_CHARACTER = 0.085, 0.19  # inches, width and height with spacing

# line, column, text, colour
_Cell = tuple[int, int, str, str]


def gate_matrix(weights: np.ndarray, domains: Sequence[str], specialists: Sequence[str]) -> np.ndarray:
    """A labelled heat map.

    Args:
        weights: [domains, K] mean weights, from 0 to 1; NaN where a domain has none.
        domains: names, from the top.
        specialists: names, from the left.

    Returns:
        [height, width, 3] uint8.
    """
    figure = Figure(figsize=(1.6 + 1.1 * len(specialists), 1.0 + 0.6 * len(domains)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(specialists)), specialists, parse_math=False)
    axes.set_yticks(range(len(domains)), domains, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel("specialist")
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("domain")
    for (row, column), weight in np.ndenumerate(weights):
        if not math.isnan(weight):
            dark = "white" if weight > 0.6 else "black"
            axes.text(column, row, f"{weight:.3f}", ha="center", va="center", color=dark)
    return _pixels(figure)


def coloured_text(excerpt: Excerpt, specialists: Sequence[str]) -> np.ndarray:
    """The beginning of a sample's responses, each token on the mixed colours of the specialists that made it.

    Args:
        excerpt: the tokens and the gate's weights on them.
        specialists: names, in order.

    Returns:
        [height, width, 3] uint8.
    """
    colours = specialist_colours(specialists)
    cells: list[_Cell] = []
    for turn in excerpt.turns:
        first = cells[-1][0] + 2 if cells else 0
        cells += _cells(turn.pieces, blend(turn.values.weights, list(colours.values())), first)
    lines = 1 + max((line for line, _, _, _ in cells), default=0)
    width, height = _CHARACTER
    figure = Figure(figsize=(COLUMNS * width + 0.2, (lines + 2) * height + 0.2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1, COLUMNS + 1)
    axes.set_ylim(lines + 0.5, -2)
    axes.axis("off")
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=patches, loc="upper left", ncols=len(patches), frameon=False, fontsize=8, borderpad=0.1)
    for line, column, text, colour in cells:
        axes.add_patch(Rectangle((column, line), len(text), 1, color=colour, linewidth=0))
        axes.text(
            column, line + 0.5, text, va="center", family="monospace", fontsize=_CHARACTER[0] * 72 / 0.602,
            parse_math=False,
        )  # fmt: skip
    return _pixels(figure)


def _cells(pieces: Sequence[str], backgrounds: Sequence[str], line: int) -> list[_Cell]:
    """What is drawn from a line on: tokens, broken where a line of the text ends or at `COLUMNS`."""
    cells, column = [], 0
    for piece, colour in zip(pieces, backgrounds, strict=True):
        for index, part in enumerate(piece.replace("\t", "    ").split("\n")):
            if index:
                line, column = line + 1, 0
            while part:
                if column == COLUMNS:
                    line, column = line + 1, 0
                text, part = part[: COLUMNS - column], part[COLUMNS - column :]
                cells.append((line, column, text, colour))
                column += len(text)
    return cells


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A character that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
