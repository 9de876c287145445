"""Prints the quickstart's result, cross-entropies per domain, and writes it as Markdown.

python -m examples.quickstart.table --out examples/quickstart/out
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

COLUMNS = ("text", "code", "math", "mean")


def main() -> None:
    """Reads the two reports, and what evaluate_specialist.py measured, below `--out`; writes table.md there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the quickstart's output directory")
    out = parser.parse_args().out
    warmup = _read(out / "report-warmup" / "report.json")["domains"]
    joint = _read(out / "report" / "report.json")["domains"]
    rows = table_rows(warmup, joint, _read(out / "trained-on.json"))
    lines = format_table(rows)
    temporary = out / f".table.md.tmp-{os.getpid()}"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.rename(out / "table.md")
    print("Cross-entropy per response token (nats, lower is better, ** = best of its column, the oracles aside):\n")
    print("\n".join(lines))


def table_rows(
    warmup: dict[str, Any], joint: dict[str, Any], trained_on: dict[str, dict[str, float]]
) -> list[tuple[str, list[float]]]:
    """The rows: a name and a cross-entropy for each of `COLUMNS`.

    Args:
        warmup: `domains` of the report after warm-up, whose specialists are still the original ones.
        joint: `domains` of the report after joint training.
        trained_on: {domain: {specialist: cross-entropy}} of evaluate_specialist.py.
    """

    def row(values: dict[str, float]) -> list[float]:
        cells = [values[domain] for domain in COLUMNS[:-1]]
        return [*cells, sum(cells) / len(cells)]

    def field(report: dict[str, Any], name: str) -> list[float]:
        return row({domain: report[domain]["cross_entropy"][name] for domain in report})

    specialists = list(warmup["text"]["cross_entropy"]["specialists"])
    alone = {s: {d: warmup[d]["cross_entropy"]["specialists"][s] for d in warmup} for s in specialists}
    return [
        *((f"{name} specialist alone", row(alone[name])) for name in specialists),
        ("uniform mixture", field(warmup, "uniform")),
        ("fused after warm-up", field(warmup, "fused")),
        ("fused after joint", field(joint, "fused")),
        *(
            (f"{name} specialist, trained further", row({d: trained_on[d][name] for d in trained_on}))
            for name in specialists
        ),
        ("oracle after warm-up", field(warmup, "oracle")),
        ("oracle after joint", field(joint, "oracle")),
    ]


def format_table(rows: list[tuple[str, list[float]]]) -> list[str]:
    """The lines of a Markdown table; the best cell of each column but the oracles' is bold."""
    contenders = [values for name, values in rows if not name.startswith("oracle")]
    best = [min(column) for column in zip(*contenders, strict=True)]
    width = max(len(name) for name, _ in rows)
    lines = [f"| {'':{width}} |" + "".join(f" {name:>10} |" for name in COLUMNS)]
    lines.append(f"|{'-' * (width + 2)}|" + "-----------:|" * len(COLUMNS))
    for name, values in rows:
        cells = []
        for value, lowest in zip(values, best, strict=True):
            text = f"{value:.4f}"
            cells.append(f"**{text}**" if value == lowest and not name.startswith("oracle") else text)
        lines.append(f"| {name:{width}} |" + "".join(f" {cell:>10} |" for cell in cells))
    return lines


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


if __name__ == "__main__":
    main()
