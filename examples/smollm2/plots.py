"""The plots: test losses by model, and the fused run's training losses by step."""

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from examples.quickstart.samples import DOMAINS
from examples.shared.measures import COLUMNS, Row
from examples.shared.plots import COLOURS, save

WINDOW = 10


def draw(out: Path, rows: Mapping[str, Row]) -> None:
    """Writes the SVG files into `out`/plots."""
    (out / "plots").mkdir(exist_ok=True)
    # the same files from the same numbers
    with matplotlib.rc_context({"svg.hashsalt": "smollm2"}):
        draw_losses(out / "plots" / "losses.svg", rows)
        draw_steps(out / "plots" / "steps.svg", out / "run" / "metrics.jsonl")


def draw_losses(path: Path, rows: Mapping[str, Row]) -> None:
    """Test loss of every model by domain, with its 95 % interval."""
    figure, axes = pyplot.subplots(1, len(COLUMNS), figsize=(12, 4), sharey=True)
    for axis, column in zip(axes, COLUMNS, strict=True):
        for place, row in enumerate(rows.values()):
            (measure,) = row.seeds.values()
            axis.plot(measure.intervals[column], [place, place], color="lightgrey", linewidth=4, zorder=1)
            axis.scatter([measure.losses[column]], [place], s=14, color="black" if row.contender else "grey", zorder=2)
        axis.set_title(column)
        axis.set_xlabel("nats per token")
    axes[0].set_yticks(range(len(rows)), [row.title for row in rows.values()])
    axes[0].invert_yaxis()
    save(figure, path)


def draw_steps(path: Path, metrics: Path) -> None:
    """Loss of the fused model by domain over the steps of both stages, each the mean of a few steps."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    lines = [line for line in lines if line["split"] == "train"]
    figure, axis = pyplot.subplots(figsize=(7, 4))
    for domain in DOMAINS:
        losses = [line[f"loss/{domain}"] for line in lines]
        means = [
            sum(own) / len(own) for own in (losses[max(0, end - WINDOW) : end] for end in range(1, len(lines) + 1))
        ]
        axis.plot(range(1, len(lines) + 1), means, color=COLOURS[domain], label=domain)
    axis.axvline(sum(line["stage"] == "warmup" for line in lines) + 0.5, color="grey", linestyle=":")
    axis.set_xlabel("step: warm-up, then joint")
    axis.set_ylabel(f"training loss, nats per token, mean of {WINDOW} steps")
    axis.legend()
    save(figure, path)
