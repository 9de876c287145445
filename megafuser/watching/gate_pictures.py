"""Pictures of the gate as pixels: its mean weights by domain, and texts coloured by it.

Those of a report are SVG: `report.plots`.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from megafuser.figures.palette import blend, specialist_colours
from megafuser.watching.excerpts import Excerpt

COLUMNS = 96
"""Characters of a line of text."""
_WIDTH, _HEIGHT, _MARGIN = 8, 19, 8  # pixels, of a letter, of a line with spacing, and around all

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
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


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
    for name, colour in zip(specialists, blend(np.eye(len(specialists)), list(colours.values())), strict=True):
        column = 1 + cells[-1][1] + len(cells[-1][2]) if cells else 0
        cells.append((0, column, f" {name} "[:COLUMNS], colour))
    for turn in excerpt.turns:
        cells += _cells(turn.pieces, blend(turn.values.weights, list(colours.values())), cells[-1][0] + 2)
    size = (COLUMNS * _WIDTH + 2 * _MARGIN, (cells[-1][0] + 1) * _HEIGHT + 2 * _MARGIN)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), _font()
    for line, column, text, colour in cells:
        left, top = _MARGIN + column * _WIDTH, _MARGIN + line * _HEIGHT
        draw.rectangle((left, top, left + len(text) * _WIDTH - 1, top + _HEIGHT - 2), fill=colour)
        draw.text((left, top), text, fill="black", font=font)
    return np.asarray(picture)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The monospaced font that comes with matplotlib, at the size at which a letter is `_WIDTH` wide."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return ImageFont.truetype(str(path), _WIDTH / 0.602)


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
