"""`statistics.html`: a run's data on one page that needs nothing else, from a template that escapes every text.

The numbers come from `data.statistics`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from megafuser import __version__
from megafuser.data import statistics_table
from megafuser.data.statistics import Document
from megafuser.figures.page import page_template
from megafuser.figures.palette import UNIFORM, specialist_colours
from megafuser.figures.svg import INK, legend_above, new_figure, svg_element


def render(document: Document) -> str:
    """Makes the page.

    Args:
        document: as `statistics.gather` makes it.
    """
    splits = document["splits"]
    return page_template("megafuser.data", "statistics.html.j2").render(
        document=document,
        version=__version__,
        domains=list(splits["train"]),
        tables={split: statistics_table.rows(document, split) for split in splits},
        reasons={split: statistics_table.reasons(document, split) for split in splits},
        sources={split: statistics_table.sources(document, split) for split in splits},
        plots={
            "lengths": Markup(length_histograms(document, "train")),
            "tokens": Markup(token_bars(document)),
            "seen": Markup(seen_bars(document)),
        },
        number=statistics_table.number,
    )


def length_histograms(document: Document, split: str) -> str:
    """Lengths by domain: each specialist's view of the samples, and the responses."""
    domains = document["splits"][split]
    colours = specialist_colours(document["specialists"])
    with new_figure(9.0, 1.9 * len(domains) + 0.6) as figure:
        panels = figure.subplots(len(domains), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (domain, own) in zip(panels, domains.items(), strict=True):
            edges = own["lengths"]["edges"]
            axes.stairs(own["lengths"]["responses"], edges, fill=True, color=UNIFORM, alpha=0.45, label="responses")
            views = own["lengths"]["views"]
            # templates of equal length give equal curves: the later ones are thinner, so that all are seen
            for (name, counts), width in zip(views.items(), np.linspace(4.4, 1.4, len(views)), strict=True):
                axes.stairs(counts, edges, color=colours[name], linewidth=width, label=name)
            axes.set_title(domain, fontsize=10, loc="left")
            axes.set_ylabel("samples")
        last = max(_last_used(own["lengths"]) for own in domains.values())
        panels[-1].set_xlim(0, last)
        panels[-1].set_xlabel("tokens")
        legend_above(figure)
        return svg_element(figure, "lengths", "Histograms of the samples' lengths by domain")


def token_bars(document: Document) -> str:
    """Tokens by domain, as each specialist sees them, and those of the responses."""
    domains = document["splits"]["train"]
    colours = specialist_colours(document["specialists"])
    series = [(name, colours[name], [own["tokens"][name] for own in domains.values()]) for name in colours]
    series.append(("responses", UNIFORM, [own["response_tokens"] for own in domains.values()]))
    return _bars(list(domains), series, "tokens", "tokens", "Bar chart of the tokens by domain")


def seen_bars(document: Document) -> str:
    """How often each sample is seen, by domain, or by source where sources have weights, and by stage."""
    stages = document["stages"]
    draws = next(iter(stages.values()))["draws"]
    places = [own["domain"] if own["source"] is None else f"{own['domain']}\n{own['source']}" for own in draws]
    looks = zip(stages.items(), (UNIFORM, INK), strict=True)
    series = [(stage, colour, [one["times"] for one in own["draws"]]) for (stage, own), colour in looks]
    return _bars(places, series, "times each sample is seen", "seen", "Bar chart of how often samples are seen")


def _bars(
    places: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]], unit: str, name: str, description: str
) -> str:
    width = 0.86 / len(series)
    at = np.arange(len(places))
    with new_figure(max(6.0, 0.7 * len(series) * len(places) + 1.5), 3.0) as figure:
        axes = figure.subplots()
        for index, (label, colour, values) in enumerate(series):
            offset = (index - (len(series) - 1) / 2) * width
            bars = axes.bar(at + offset, values, width * 0.92, color=colour, label=label)
            axes.bar_label(bars, fmt=lambda value: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", fontsize=7)
        axes.set_xticks(at, places)
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_formatter("{x:,.6g}")
        axes.set_ylabel(unit)
        axes.margins(x=0.02, y=0.12)
        legend_above(figure)
        return svg_element(figure, name, description)


def _last_used(lengths: dict[str, Any]) -> float:
    """The edge behind the last bin that holds anything."""
    counts = np.sum([lengths["responses"], *lengths["views"].values()], axis=0)
    used = np.flatnonzero(counts)
    edge: float = lengths["edges"][int(used[-1]) + 1] if len(used) else lengths["edges"][1]
    return edge
