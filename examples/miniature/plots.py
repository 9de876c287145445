"""The plots: test losses by model, the specialists' dev curves, the fused runs' validation curves."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from examples.miniature.measures import Seed
from examples.quickstart.samples import DOMAINS
from examples.shared.files import read_json
from examples.shared.measures import COLUMNS, Row
from examples.shared.plots import COLOURS, save

# The same files from the same numbers.
matplotlib.rcParams["svg.hashsalt"] = "miniature"
VARIANTS = {"balanced": "-", "joint-only": "--", "unbalanced": ":"}
# Of the losses that are drawn, the highest over the lowest.
WIDEST = 1.5


def draw(out: Path, seeds: Sequence[Seed], rows: Iterable[Row]) -> None:
    """Writes the SVG files into `out`/plots; `rows` are those whose test losses are shown."""
    (out / "plots").mkdir(exist_ok=True)
    draw_losses(out / "plots" / "losses.svg", [row for row in rows if row.seeds])
    draw_specialists(out / "plots" / "specialists.svg", seeds)
    draw_fused(out / "plots" / "fused.svg", seeds)


def draw_losses(path: Path, rows: Sequence[Row]) -> None:
    """Test loss by row and column, a dot for each seed over the interval over samples; oracles are hollow.

    What is far above the lowest is a number at the edge: specialists outside their own domain would press all else
    together.
    """
    figure, axes = pyplot.subplots(1, len(COLUMNS), figsize=(12, 1.2 + 0.24 * len(rows)), sharey=True)
    for axis, column in zip(axes, COLUMNS, strict=True):
        limit = WIDEST * min(one.losses[column] for row in rows if row.contender for one in row.seeds.values())
        for place, row in enumerate(rows):
            measures = list(row.seeds.values())
            losses = [one.losses[column] for one in measures]
            if max(losses) > limit:
                mean = sum(losses) / len(losses)
                axis.text(limit, place, f"{mean:.1f} \N{RIGHTWARDS ARROW}", ha="right", va="center", fontsize=8)
                continue
            low, high = (sum(one.intervals[column][end] for one in measures) / len(measures) for end in (0, 1))
            axis.plot([low, high], [place, place], color="lightgrey", linewidth=4, zorder=1)
            face = "black" if row.contender else "white"
            axis.scatter(losses, [place] * len(losses), s=12, color=face, edgecolors="black", linewidths=0.6, zorder=2)
        axis.set_xlim(right=limit)
        axis.grid(axis="x", linewidth=0.4)
        axis.set_title(column)
        axis.set_xlabel("nats per token")
    axes[0].set_yticks(range(len(rows)), [row.title for row in rows])
    axes[0].invert_yaxis()
    save(figure, path)


def draw_specialists(path: Path, seeds: Sequence[Seed]) -> None:
    """Dev loss of the trainings from scratch over tokens."""
    figure, axis = pyplot.subplots(figsize=(7, 4))
    for seed in seeds:
        for name in DOMAINS:
            curve = read_json(seed.path / "specialists" / name / "training.json")["curve"]
            label = name if seed is seeds[0] else None
            axis.plot([own["tokens"] for own in curve], [own["dev"] for own in curve], color=COLOURS[name], label=label)
        larger = seed.path / "models" / "larger" / "training.json"
        if larger.exists():
            curve = read_json(larger)["curve"]
            axis.plot([own["tokens"] for own in curve], [own["dev"] for own in curve], "k", label="larger, all domains")
    axis.set_xlabel("tokens")
    axis.set_ylabel("dev loss, nats per token")
    axis.legend()
    save(figure, path)


def draw_fused(path: Path, seeds: Sequence[Seed]) -> None:
    """Loss of the fused runs on dev samples over the steps of joint training, by variant."""
    figure, axis = pyplot.subplots(figsize=(7, 4))
    for seed in seeds:
        for variant, style in VARIANTS.items():
            metrics = (seed.path / "runs" / variant / "metrics.jsonl").read_text("utf-8").splitlines()
            lines = [json.loads(line) for line in metrics]
            lines = [line for line in lines if line["split"] == "valid" and line["stage"] == "joint"]
            label = variant if seed is seeds[0] else None
            steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
            axis.plot(steps, losses, style, color="black", label=label)
    axis.set_xlabel("step of joint training")
    axis.set_ylabel("loss on dev samples, nats per token")
    axis.legend()
    save(figure, path)
