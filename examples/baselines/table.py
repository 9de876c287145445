"""Puts the reports together: cross-entropies with intervals by domain, as Markdown and JSON.

python examples/baselines/table.py --out examples/baselines/out
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

MERGES = {"linear": "linear merge", "ties": "TIES merge"}


def main() -> None:
    """Reads the reports below `--out`; writes table.md and table.json there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the baselines' output directory")
    out = parser.parse_args().out
    reports = {
        name: json.loads((out / f"report-{name}" / "report.json").read_text("utf-8"))
        for name in ("warmup", "joint", "baselines")
        if (out / f"report-{name}" / "report.json").exists()
    }
    _check_samples(reports)
    tuned = json.loads((out / "models" / "finetuned" / "finetuned.json").read_text("utf-8"))
    rows = table_rows(reports, tuned["specialist"])
    lines = format_table(rows, list(reports["warmup"]["domains"]))
    _write(out / "table.json", json.dumps(rows, indent=2) + "\n")
    _write(out / "table.md", "\n".join(lines) + "\n")
    print("Cross-entropy per response token in nats with 95% intervals (** lowest of its column, the oracle aside):\n")
    print("\n".join(lines))


def _check_samples(reports: dict[str, Any]) -> None:
    """All reports must be on the same samples."""
    counts = {
        name: {domain: (own["samples"], own["response_tokens"]) for domain, own in report["domains"].items()}
        for name, report in reports.items()
    }
    if len({json.dumps(own) for own in counts.values()}) > 1:
        raise SystemExit(
            f"table: error: the reports are not on the same samples: {counts}; remove the reports and run again"
        )


def table_rows(reports: dict[str, Any], tuned: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Model → domain, or `mean` over the domains → cross-entropy and its interval."""
    warmup, baselines = reports["warmup"], reports["baselines"]
    specialists = list(warmup["overall"]["cross_entropy"]["specialists"])
    rows = {f"{name} specialist alone": _row(warmup, "specialists", name) for name in specialists}
    rows["uniform mixture"] = _row(warmup, "uniform")
    for merge, title in MERGES.items():
        names = [name for name in baselines["overall"]["cross_entropy"]["specialists"] if name.startswith(f"{merge}-")]
        # a merged model has no template of its own: the one that suits it best
        best = min(names, key=lambda name: baselines["mean"]["cross_entropy"]["specialists"][name])
        template = best.removeprefix(f"{merge}-")
        rows[f"{title}, prompts as {template}'s"] = _row(baselines, "specialists", best)
    rows[f"{tuned} specialist fine-tuned"] = _row(baselines, "specialists", "finetuned")
    rows["fused after warm-up"] = _row(warmup, "fused")
    if "joint" in reports:
        rows["fused after joint"] = _row(reports["joint"], "fused")
    rows["oracle over the specialists"] = _row(warmup, "oracle")
    return rows


def _row(report: dict[str, Any], *keys: str) -> dict[str, dict[str, Any]]:
    def cell(line: dict[str, Any]) -> dict[str, Any]:
        value, interval = line["cross_entropy"], line["confidence_interval"]["cross_entropy"]
        for key in keys:
            value, interval = value[key], interval[key]
        return {"cross_entropy": value, "confidence_interval": interval}

    return {**{name: cell(line) for name, line in report["domains"].items()}, "mean": cell(report["mean"])}


def format_table(rows: dict[str, dict[str, dict[str, Any]]], domains: list[str]) -> list[str]:
    """The lines of a Markdown table."""
    columns = [*domains, "mean"]
    contenders = [row for name, row in rows.items() if not name.startswith("oracle")]
    lowest = {column: min(row[column]["cross_entropy"] for row in contenders) for column in columns}
    width = max(map(len, rows))
    lines = [f"| {'':{width}} |" + "".join(f" {column:>25} |" for column in columns)]
    lines.append(f"|{'-' * (width + 2)}|" + f"{'-' * 26}:|" * len(columns))
    for name, row in rows.items():
        cells = []
        for column in columns:
            value, (low, high) = row[column]["cross_entropy"], row[column]["confidence_interval"]
            best = value == lowest[column] and not name.startswith("oracle")
            cells.append((f"**{value:.3f}**" if best else f"{value:.3f}") + f" ({low:.3f}–{high:.3f})")
        lines.append(f"| {name:{width}} |" + "".join(f" {cell:>25} |" for cell in cells))
    return lines


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


if __name__ == "__main__":
    main()
