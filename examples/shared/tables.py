"""Markdown tables of an example's results: models by domain, claims, the gate's weights."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from examples.quickstart.samples import DOMAINS
from examples.shared.measures import COLUMNS, Row, right_interval
from megafuser.report.gate_checks import PAPER


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        text: what is claimed.
        required: whether the experiment fails its purpose without it; the others are told as they come out.
        seeds: by seed, whether it holds and by how much, in nats: the fused model's loss less the other's.
    """

    text: str
    required: bool
    seeds: Mapping[int, tuple[bool, float]]

    @property
    def holds(self) -> bool:
        """On every seed."""
        return all(holds for holds, _ in self.seeds.values())


def format_claims(found: list[Claim]) -> list[str]:
    """A Markdown table: yes or no by seed, with the difference; with several seeds, its mean ± standard deviation."""
    seeds = sorted({seed for claim in found for seed in claim.seeds})
    columns = [f"seed {seed}" for seed in seeds] + (["mean difference"] if len(seeds) > 1 else [])
    lines = ["| fused after joint (difference in nats) | needed | " + " | ".join(columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for claim in found:
        cells = []
        for seed in seeds:
            holds, gap = claim.seeds.get(seed, (None, 0.0))
            cells.append("–" if holds is None else f"{'yes' if holds else '**no**'} ({gap:+.4f})")
        if len(seeds) > 1:
            gaps = [gap for _, gap in claim.seeds.values()]
            spread = f"{statistics.mean(gaps):+.4f} ± {statistics.stdev(gaps):.4f}" if len(gaps) > 1 else "–"
            cells.append(spread)
        lines.append(f"| {claim.text} | {'yes' if claim.required else ''} | " + " | ".join(cells) + " |")
    return lines


def format_rows(rows: Iterable[Row], solved: bool = True) -> list[str]:
    """A Markdown table; bold is the lowest loss of a column, those of oracles aside; `solved`: with right answers."""
    rows = [row for row in rows if row.seeds]
    lowest = {name: min(_mean(row, name) for row in rows if row.contender) for name in COLUMNS}
    kinds = sorted({kind for row in rows for one in row.seeds.values() for kind in one.right or {}})
    right = f"right answers ({', '.join(kinds)})" if kinds else "right answers"
    titles = [*COLUMNS, *([right] if solved else []), "response tokens"]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for row in rows:
        cells = []
        for name in COLUMNS:
            best = row.contender and _mean(row, name) == lowest[name]
            cells.append(_cell(row, name, best))
        notes = sorted({one.note for one in row.seeds.values() if one.note})
        title = row.title + (f" ({', '.join(notes)})" if notes else "")
        tokens = [one.response_tokens for one in row.seeds.values() if one.response_tokens is not None]
        cells += [*([_right(row)] if solved else []), f"{statistics.mean(tokens):,.0f}" if tokens else ""]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _mean(row: Row, name: str) -> float:
    return statistics.mean(one.losses[name] for one in row.seeds.values())


def _cell(row: Row, name: str, best: bool) -> str:
    """Mean over seeds ± standard deviation over seeds (interval over samples, its ends averaged over seeds)."""
    measures = list(row.seeds.values())
    mean = f"{_mean(row, name):.3f}"
    text = f"**{mean}**" if best else mean
    if len(measures) > 1:
        text += f" ± {statistics.stdev(one.losses[name] for one in measures):.3f}"
    low, high = (statistics.mean(one.intervals[name][end] for one in measures) for end in (0, 1))
    return f"{text} ({low:.3f}–{high:.3f})"


def _right(row: Row) -> str:
    """Mean over seeds ± standard deviation over seeds (interval over problems; the mean of each kind)."""
    rights = [one.right for one in row.seeds.values() if one.right]
    if not rights:
        return ""
    whole = [[own for kind in sorted(right) for own in right[kind]] for right in rights]
    shares = [100 * statistics.mean(own) for own in whole]
    text = f"{statistics.mean(shares):.1f}"
    if len(shares) > 1:
        text += f" ± {statistics.stdev(shares):.1f}"
    low, high = (100 * statistics.mean(right_interval(own)[end] for own in whole) for end in (0, 1))
    kinds = [100 * statistics.mean(statistics.mean(right[kind]) for right in rights) for kind in sorted(rights[0])]
    return f"{text} % ({low:.1f}–{high:.1f}; {', '.join(f'{kind:.1f}' for kind in kinds)})"


def format_gate(gate: dict[str, Any]) -> list[str]:
    """Mean weights of the specialists by domain, the paper's beside them."""
    lines = ["| data | " + " | ".join(f"{name} specialist (paper)" for name in DOMAINS) + " |", "|---|" + "---:|" * 3]
    for domain in DOMAINS:
        cells = []
        for name in DOMAINS:
            weights = gate[domain][name]
            spread = f" ± {statistics.stdev(weights):.2f}" if len(weights) > 1 else ""
            cells.append(f"{statistics.mean(weights):.2f}{spread} ({PAPER[domain][name]:.2f})")
        lines.append(f"| {domain} | " + " | ".join(cells) + " |")
    return lines
