"""What the examples' plots have in common."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

matplotlib.use("svg")

COLOURS = {"text": "tab:blue", "code": "tab:orange", "math": "tab:green"}


def save(figure: Figure, path: Path) -> None:
    """Writes an SVG file, the same from the same numbers where matplotlib's `svg.hashsalt` is set."""
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
