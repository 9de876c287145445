"""The plots of a report as inline SVG; nothing points outside.

The page around them is `report.html`; how a figure becomes SVG is `figures.svg`.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megafuser.figures.palette import ORACLE, UNIFORM, specialist_colours
from megafuser.figures.svg import INK, legend_above, new_figure, svg_element
from megafuser.report.bootstrap import Estimate
from megafuser.report.calibration import Calibration
from megafuser.report.curves import Curves
from megafuser.report.results import Report

_LINE_STYLES = ("-", "--", ":", "-.")
_BARS = "#5b8db8"
_HEAT = LinearSegmentedColormap.from_list("gate", ["#eef3fb", "#7fb0dc", "#08306b"])


def cross_entropy_bars(report: Report) -> str:
    """Bars by domain with their confidence intervals: each specialist alone, uniform mixture, fused, oracle."""
    colours = specialist_colours(report.specialists)
    found = report.analysis.comparisons
    lines = [*found.domains.items(), ("overall", found.overall)]
    series = [(name, colours[name], [own.specialists[name] for _, own in lines]) for name in report.specialists]
    series += [
        ("uniform", UNIFORM, [own.uniform for _, own in lines]),
        ("fused", INK, [own.fused for _, own in lines]),
        ("oracle", ORACLE, [own.oracle for _, own in lines]),
    ]
    width = 0.86 / len(series)
    places = np.arange(len(report.lines))
    with new_figure(max(7.5, 0.34 * len(series) * len(places) + 1.5), 3.8) as figure:
        axes = figure.subplots()
        for index, (name, colour, estimates) in enumerate(series):
            offset = (index - (len(series) - 1) / 2) * width
            values = [own.value for own in estimates]
            look: Any = {"ecolor": UNIFORM if colour == INK else INK, "elinewidth": 1.0, "capsize": 2.0}
            # whiskers that are the bars' own, so that the numbers stand above them
            own_bars: Any = {"color": colour, "label": name, "yerr": _whiskers(estimates), "error_kw": look}
            bars = axes.bar(places + offset, values, width * 0.92, **own_bars)
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2, rotation=90 if len(series) > 6 else 0)
        axes.set_xticks(places, [name for name, _ in report.lines])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("nats per response token")
        axes.margins(x=0.02, y=0.12)
        legend_above(figure)
        return svg_element(figure, "bars", "Bar chart of the cross-entropies by domain")


def gate_heatmap(report: Report) -> str:
    """Mean gate weights, domain × specialist."""
    lines = {name: own.gate for name, own in report.domains.items()}
    names = [*lines, "overall"]
    return _heatmap([*lines.values(), report.overall.gate], names, "gate", "Heat map of the mean gate weights")


def paper_heatmap(gate: Mapping[str, dict[str, float]]) -> str:
    """The same from the paper, for comparison."""
    return _heatmap(list(gate.values()), list(gate), "paper", "Heat map of the paper's mean gate weights")


def _heatmap(lines: Sequence[dict[str, float]], names: Sequence[str], plot: str, title: str) -> str:
    specialists = list(lines[0])
    weights = np.array([[own[name] for name in specialists] for own in lines])
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
        axes.set_xticks(np.arange(cells) + 0.5, specialists)
        axes.set_yticks(np.arange(rows) + 0.5, names)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        return svg_element(figure, plot, f"{title}, domains by specialists")


def reliability_diagram(calibration: Sequence[tuple[str, Calibration]]) -> str:
    """By domain: how often the most probable token is the right one, over how probable the model holds it."""
    with new_figure(2.9 * len(calibration) + 0.4, 3.0) as figure:
        panels = figure.subplots(1, len(calibration), sharex=True, sharey=True, squeeze=False)[0]
        for (name, own), axes in zip(calibration, panels, strict=True):
            most = max(one.tokens for one in own.bins)
            for one in own.bins:
                if one.confidence is None or one.accuracy is None:
                    continue
                # the share of tokens as shade, so that a bin of three does not look like one of three thousand
                shade = 0.25 + 0.75 * (one.tokens / most) ** 0.5
                axes.bar(one.low, one.accuracy, one.high - one.low, align="edge", color=_BARS, alpha=shade)
                axes.plot([one.confidence], [one.accuracy], marker="o", markersize=3, color=INK)
            axes.plot([0, 1], [0, 1], color=UNIFORM, linewidth=1, linestyle="--")
            axes.set_title(f"{name}: ECE {own.error:.3f}", fontsize=10, loc="left")
            axes.set_xlabel("probability of the top token")
            axes.set(xlim=(0, 1), ylim=(0, 1))
        panels[0].set_ylabel("share of right ones")
        return svg_element(figure, "reliability", "Reliability diagrams of the fused model by domain")


def gap_closed(report: Report) -> str:
    """How much of the way to the oracle the fused model goes, from the best specialist and from the best single one."""
    found = report.analysis.comparisons
    lines = [*found.domains.items(), ("mean of the domains", found.mean), ("overall", found.overall)]
    with new_figure(8.0, 0.55 * len(lines) + 1.0) as figure:
        axes = figure.subplots()
        starts = (
            ("from the line's best specialist", INK, -0.14, [own.gap_closed for _, own in lines]),
            (f"from {found.single}, the best single one", _BARS, 0.14, [own.gap_closed_single for _, own in lines]),
        )
        for label, colour, offset, estimates in starts:
            shown = [(place + offset, own) for place, own in enumerate(estimates) if own is not None]
            if shown:
                places, own = zip(*shown, strict=True)
                values = [one.value for one in own]
                look: Any = {"fmt": "o", "color": colour, "markersize": 5, "capsize": 2.5, "label": label}
                axes.errorbar(values, places, xerr=_whiskers(own), **look)
        axes.axvline(0, color=UNIFORM, linewidth=1)
        axes.axvline(1, color=UNIFORM, linewidth=1, linestyle="--")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_yticks(range(len(lines)), [name for name, _ in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        legend_above(figure)
        return svg_element(figure, "gap", "How much of the gap to the oracle is closed, by domain, with intervals")


def rate_curves(curves: Curves) -> str:
    """Learning rate and gradient norm by stage."""
    keys = (("lr", "learning rate"), ("grad_norm", "gradient norm"))
    with new_figure(9.0, 4.2) as figure:
        grid = figure.subplots(len(keys), len(curves.stages), sharex="col", squeeze=False)
        for (row, (key, label)), (column, stage) in itertools.product(enumerate(keys), enumerate(curves.stages)):
            axes = grid[row][column]
            _line(axes, curves.train[stage], key, color=INK)
            if row == 0:
                axes.set_title(stage, fontsize=10, loc="left")
            if column == 0:
                axes.set_ylabel(label)
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        for axes in grid[-1]:
            _steps_below(axes)
        return svg_element(figure, "rates", "Curves of learning rate and gradient norm by stage")


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
            _steps_below(axes)
        figure.supylabel("mean gate weight", fontsize=10)
        legend_above(figure)
        return svg_element(figure, "gatecurves", "Curves of the mean gate weights in training by stage and domain")


def _whiskers(estimates: Sequence[Estimate]) -> np.ndarray:
    """How far each interval reaches down and up; a value may lie a little outside of its own."""
    return np.array([[max(0.0, own.value - own.low), max(0.0, own.high - own.value)] for own in estimates]).T


def _stage_panels(figure: Figure, curves: Curves) -> list[tuple[str, Any]]:
    panels = figure.subplots(1, len(curves.stages), sharey=True, squeeze=False)[0]
    for stage, axes in zip(curves.stages, panels, strict=True):
        axes.set_title(stage, fontsize=10, loc="left")
        _steps_below(axes)
    return list(zip(curves.stages, panels, strict=True))


def _steps_below(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _styled(domains: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(domains, itertools.cycle(_LINE_STYLES), strict=False))


def _line(axes: Any, lines: Sequence[dict[str, Any]], key: str, **look: Any) -> None:
    """One curve; a step without that domain has no such key."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, **({"linewidth": 1.2} | look))
