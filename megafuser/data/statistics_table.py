"""A run's data statistics as rows of text, for the terminal and for the page.

The numbers come from `data.statistics`.
"""

from dataclasses import dataclass
from typing import Any

from megafuser.data.stage_sampler import times
from megafuser.data.statistics import LENGTH_KEYS, Document
from megafuser.figures.text_table import aligned


@dataclass(frozen=True)
class Row:
    """A line of a table: what is counted, and its value in each domain."""

    title: str
    cells: list[str]


def rows(document: Document, split: str) -> list[Row]:
    """The table of one split, domain by domain.

    Args:
        document: as `statistics.gather` makes it.
        split: `train` or `valid`.
    """
    domains: dict[str, dict[str, Any]] = document["splits"][split]
    specialists: list[str] = document["specialists"]

    def row(title: str, value: Any) -> Row:
        return Row(title, [value(own) for own in domains.values()])

    made = [
        row("samples", lambda own: number(own["samples"])),
        row("read", lambda own: number(own["read"])),
        row("dropped", lambda own: number(sum(own["dropped"].values()))),
        row("bad lines", lambda own: number(sum(own["bad"].values()))),
        row("truncated", lambda own: number(own["truncated"])),
        row("duplicates (kept)", lambda own: number(own["duplicates"])),
        *(row(f"tokens, {name}", lambda own, name=name: number(own["tokens"][name])) for name in specialists),
        row("response tokens", lambda own: number(own["response_tokens"])),
    ]
    made += [
        row(f"length, {name}", lambda own, name=name: _lengths(own["length_summary"]["views"][name]))
        for name in specialists
    ]
    made.append(row("length, responses", lambda own: _lengths(own["length_summary"]["responses"])))
    if split == "train":
        made += [Row(f"seen in {stage}", _seen(document, stage, list(domains))) for stage in document["stages"]]
    return made


def reasons(document: Document, split: str) -> list[tuple[str, str, int, list[str]]]:
    """What was not used: (domain, reason, how many, the first places)."""
    return [
        (domain, reason, count, own["examples"].get(reason, []))
        for domain, own in document["splits"][split].items()
        for reason, count in (own["dropped"] | own["bad"]).items()
    ]


def sources(document: Document, split: str) -> list[tuple[str, str, int, int, str]]:
    """Where samples come from: (domain, source, read, kept, share or nothing)."""
    listed = []
    for domain, own in document["splits"][split].items():
        weights = sum(source["weight"] or 0 for source in own["sources"])
        for source in own["sources"]:
            share = f"{source['weight'] / weights:.1%} of the draws" if source["weight"] else ""
            listed.append((domain, source["name"], source["read"], source["kept"], share))
    return listed


def to_text(document: Document) -> str:
    """All tables as aligned text, ending in a newline."""
    lines: list[str] = []
    for split, domains in document["splits"].items():
        table = [[split, *domains], *([row.title, *row.cells] for row in rows(document, split))]
        lines += [*aligned(table), ""]
        for domain, reason, count, places in reasons(document, split):
            where = f" ({', '.join(places)}{', …' if count > len(places) else ''})" if places else ""
            lines.append(f"{split} {domain}: {number(count)} left out: {reason}{where}")
        for domain, name, read, kept, share in sources(document, split):
            told = f", {share}" if share else ""
            lines.append(f"{split} {domain}: {name}: {number(kept)} of {number(read)} kept{told}")
        lines.append("")
    lines.append("Lengths in tokens: mean / median / 95th percentile / longest.")
    for stage, own in document["stages"].items():
        steps = f"{number(own['steps'])} steps of {number(own['samples_per_step'])} samples"
        lines.append(f"Seen in {stage}: how often each sample is drawn in {steps}.")
    return "\n".join(lines) + "\n"


def number(value: int) -> str:
    """With commas: 1,234,567."""
    return f"{value:,}"


def _lengths(summary: dict[str, float]) -> str:
    mean, *others = (summary[key] for key in LENGTH_KEYS)
    return " / ".join([f"{mean:.0f}", *map(str, others)])


def _seen(document: Document, stage: str, domains: list[str]) -> list[str]:
    """Of each domain the times that a sample is seen; of sources with weights, from the least to the most often."""
    cells = []
    for domain in domains:
        own = [draws["times"] for draws in document["stages"][stage]["draws"] if draws["domain"] == domain]
        least, most = times(min(own)), times(max(own))
        cells.append(f"{least} times" if least == most else f"{least} to {most} times")
    return cells
