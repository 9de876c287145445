"""The plots of a report as inline SVG; nothing points outside."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from megafuser.evaluation.curves import Curves
from megafuser.evaluation.scores import Report
from megafuser.figures.palette import ORACLE, UNIFORM, specialist_colours
from megafuser.figures.svg import INK, legend_above, new_figure, svg_element

_LINE_STYLES = ("-", "--", ":", "-.")
_HEAT = LinearSegmentedColormap.from_list("gate", ["#eef3fb", "#7fb0dc", "#08306b"])


def cross_entropy_bars(report: Report) -> str:
    """Bars by domain: each specialist alone, uniform mixture, fused, oracle."""
    colours = specialist_colours(report.specialists)
    series = [(name, colours[name], [own.specialists[name] for _, own in report.lines]) for name in report.specialists]
    series += [
        ("uniform", UNIFORM, [own.uniform for _, own in report.lines]),
        ("fused", INK, [own.fused for _, own in report.lines]),
        ("oracle", ORACLE, [own.oracle for _, own in report.lines]),
    ]
    width = 0.86 / len(series)
    places = np.arange(len(report.lines))
    with new_figure(max(7.5, 0.34 * len(series) * len(places) + 1.5), 3.8) as figure:
        axes = figure.subplots()
        for index, (name, colour, values) in enumerate(series):
            offset = (index - (len(series) - 1) / 2) * width
            bars = axes.bar(places + offset, values, width * 0.92, color=colour, label=name)
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2, rotation=90 if len(series) > 6 else 0)
        axes.set_xticks(places, [name for name, _ in report.lines])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("nats per response token")
        axes.margins(x=0.02, y=0.12)
        legend_above(figure)
        return svg_element(figure, "bars", "Bar chart of the cross-entropies by domain")


def gate_heatmap(report: Report) -> str:
    """Mean gate weights, domain × specialist."""
    weights = np.array([[own.gate[name] for name in report.specialists] for _, own in report.lines])
    rows, cells = weights.shape
    # An equal share has the same light shade whatever the weights are, so that a uniform gate looks like one.
    top = min(1.0, max(2 / cells, weights.max()))
    with new_figure(max(4.0, 1.2 * cells + 1.6), 0.5 * rows + 0.9) as figure:
        axes = figure.subplots()
        axes.pcolormesh(weights, cmap=_HEAT, vmin=0, vmax=top, edgecolors="face")
        for row, cell in itertools.product(range(rows), range(cells)):
            dark = weights[row, cell] > 0.6 * top
            colour = "#ffffff" if dark else "#10141c"
            axes.text(cell + 0.5, row + 0.5, f"{weights[row, cell]:.3f}", ha="center", va="center", color=colour)
        axes.set_xticks(np.arange(cells) + 0.5, report.specialists)
        axes.set_yticks(np.arange(rows) + 0.5, [name for name, _ in report.lines])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        return svg_element(figure, "gate", "Heat map of the mean gate weights, domains by specialists")


def loss_curves(curves: Curves, domains: Sequence[str]) -> str:
    """Training and validation losses by stage: all domains together, and each."""
    with new_figure(9.0, 3.2) as figure:
        panels = _stage_panels(figure, curves)
        for stage, axes in panels:
            for domain, style in _styled(domains):
                _line(axes, curves.train[stage], f"loss/{domain}", color=UNIFORM, linestyle=style, label=domain)
            _line(axes, curves.train[stage], "loss", color=INK, linewidth=2, label="all")
            validation = {
                "color": INK,
                "marker": "o",
                "markersize": 5,
                "linestyle": "none",
                "label": "all, validation",
            }
            _line(axes, curves.valid.get(stage, []), "loss", **validation)
        panels[0][1].set_ylabel("nats per response token")
        legend_above(figure)
        return svg_element(figure, "loss", "Curves of training and validation loss by stage")


def gate_curves(curves: Curves, domains: Sequence[str], specialists: Sequence[str]) -> str:
    """Mean gate weights in training, a panel for each stage and domain."""
    colours = specialist_colours(specialists)
    stages = curves.stages
    with new_figure(max(5.0, 3.0 * len(domains)), 1.9 * len(stages) + 0.6) as figure:
        grid = figure.subplots(len(stages), len(domains), sharex="row", sharey=True, squeeze=False)
        for (row, stage), (column, domain) in itertools.product(enumerate(stages), enumerate(domains)):
            axes = grid[row][column]
            axes.set_title(f"{domain}, {stage}", fontsize=10, loc="left")
            for name in specialists:
                _line(axes, curves.train[stage], f"gate/{domain}/{name}", color=colours[name], label=name)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        figure.supylabel("mean gate weight", fontsize=10)
        legend_above(figure)
        return svg_element(figure, "gatecurves", "Curves of the mean gate weights in training by stage and domain")


def _stage_panels(figure: Figure, curves: Curves) -> list[tuple[str, Any]]:
    panels = figure.subplots(1, len(curves.stages), sharey=True, squeeze=False)[0]
    for stage, axes in zip(curves.stages, panels, strict=True):
        axes.set_title(stage, fontsize=10, loc="left")
        axes.set_xlabel("step")
    return list(zip(curves.stages, panels, strict=True))


def _styled(domains: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(domains, itertools.cycle(_LINE_STYLES), strict=False))


def _line(axes: Any, lines: Sequence[dict[str, Any]], key: str, **look: Any) -> None:
    """One curve; a step without that domain has no such key."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, **({"linewidth": 1.2} | look))
