"""A matplotlib figure as an element of an HTML page: text stays text, colours follow the page.

What is drawn is `report.plots` and `data.statistics_page`; pixels are `watching.gate_pictures`.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Stands for the page's own text colour until the SVG is written; used nowhere else.
INK = "#010203"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "megafuser",
    "font.family": "sans-serif",
    "font.size": 10,
    # A domain's name is not a formula, whatever dollars it has.
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}


def legend_above(figure: Figure) -> None:
    """One legend above all panels; what only some of them show is in it too."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = list(entries)
    figure.legend(entries.values(), names, ncols=min(len(names), 8), fontsize=9, loc="outside upper center")


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure, sizes in inches; pyplot and its global state are not used."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def svg_element(figure: Figure, name: str, description: str) -> str:
    """The figure as an element of an HTML page.

    What only a file of its own needs goes (prologue, metadata, name spaces), and identifiers get the plot's name in
    front, since all plots share one page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view is not None, "matplotlib gives every SVG a view box"
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", rest)
    rest = rest.replace(INK, "currentColor")
    width = round(figure.get_figwidth() * 80)
    return f'<svg {view[0]} role="img" aria-label="{description}" style="max-width: {width}px">{rest}'
