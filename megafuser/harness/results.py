"""From the harness's results to files: JSON, and a table of models, the paper's numbers beside them.

Writing them is `harness.evaluation_directory`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megafuser.harness.paper_results import COLUMNS, MODELS

_NO_METRICS = ("alias", "name", "sample_len", "sample_count", "samples")


def scores(results: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, float | None]]:
    """(task, metric) → value and its standard error, of the harness's dictionary; with a filter, METRIC (FILTER)."""
    found = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if metric in _NO_METRICS or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = values.get(f"{metric}_stderr" + (f",{kind}" if kind else ""))
            name = metric if kind in ("", "none") else f"{metric} ({kind})"
            found[task, name] = float(value), float(error) if isinstance(error, (int, float)) else None
    return found


def table(results: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """Markdown: a line for each task and metric, a column for each model, the paper's results where it has some.

    Args:
        results: the harness's dictionaries by model, the fused one first.
        title: of the page.
    """
    each = {model: scores(own) for model, own in results.items()}
    rows = next(iter(each.values()))
    has_paper = any(task in COLUMNS for task, _ in rows)
    header = ["task", "metric", *each, *(["paper's UltraFuser (%)"] if has_paper else [])]
    lines = [
        [task, metric, *(_number(own.get((task, metric))) for own in each.values())]
        + ([_paper("UltraFuser", task, metric)] if has_paper else [])
        for task, metric in rows
    ]
    text = f"# {title}\n\n{_markdown(header, lines)}\n"
    return text + (_paper_table(list(rows)) if has_paper else "")


def _paper_table(rows: Sequence[tuple[str, str]]) -> str:
    columns = list(dict.fromkeys(COLUMNS[task][0] for task, _ in rows if task in COLUMNS))
    lines = [[model, *(f"{values[column]:.2f}" for column in columns)] for model, values in MODELS.items()]
    return (
        "\n## The paper's results, in percent\n\nZero-shot, without chain of thought, by 13B models; the harness's "
        "tasks have other prompts, and some have few-shot examples unless `--num-fewshot 0` is given.\n\n"
        f"{_markdown(['', *columns], lines)}\n"
    )


def _paper(model: str, task: str, metric: str) -> str:
    column, own = COLUMNS.get(task, ("", ""))
    return f"{MODELS[model][column]:.2f}" if column and metric.split(" ")[0] == own else ""


def _number(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return ""
    value, error = found
    return f"{value:.4f}" + ("" if error is None or not math.isfinite(error) else f" ± {error:.4f}")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
