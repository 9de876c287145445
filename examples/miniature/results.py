"""Puts the whole run together: results.json, table.md and plots, from the runs' own files alone.

python -m examples.miniature.results --out OUT --seeds 1,2,3
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from examples.miniature.checks import agreement, checks_text, problem
from examples.miniature.claims import claims
from examples.miniature.fused_config import core_variants, other_variants
from examples.miniature.measures import Seed
from examples.miniature.plots import draw
from examples.miniature.settings import Settings, read_settings
from examples.quickstart.samples import DOMAINS
from examples.shared.files import write_by_rename
from examples.shared.measures import Measure, Row
from examples.shared.tables import format_claims, format_gate, format_rows

MERGES = {"linear": "linear merge", "ties": "TIES merge", "dare": "DARE merge"}
Section = dict[str, Row]


def main() -> None:
    """Writes everything below `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--seeds", required=True, help="by comma")
    args = parser.parse_args()
    settings = read_settings(args.out / "settings.json")
    seeds = [Seed(args.out, int(number)) for number in args.seeds.split(",")]
    first = [seed for seed in seeds if seed.number == settings.seeds[0]]
    sections = {
        "Core": core_rows(seeds),
        "Alternatives": alternative_rows(first),
        "Ablations": ablation_rows(settings, seeds),
        "More ablations": more_ablation_rows(settings, first),
    }
    rows = {key: row.seeds for section in sections.values() for key, row in section.items()}
    found = claims(rows)
    checked = agreement(seeds, first)
    others = sections["Alternatives"]
    draw(args.out, seeds, [*sections["Core"].values(), others["larger"], others["btx"]])
    gate = gate_matrices(seeds)
    results = {
        "rows": {key: {seed: dataclasses.asdict(one) for seed, one in own.items()} for key, own in rows.items()},
        "claims": [dataclasses.asdict(claim) for claim in found],
        "checks": checked,
        "gate": gate,
    }
    write_by_rename(args.out / "results.json", json.dumps(results, indent=1) + "\n")
    lines: list[str] = []
    for title, section in sections.items():
        numbers = sorted({seed for row in section.values() for seed in row.seeds})
        if numbers:
            title += f" (seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))})"
            lines += [f"### {title}", "", *format_rows(section.values()), ""]
    lines += ["### Claims", "", *format_claims(found), "", "### Gate", "", *format_gate(gate), ""]
    lines += ["### Checks", "", *checks_text(checked), ""]
    lines += ["### Training", "", *(f"![{name}](plots/{name}.svg)" for name in ("losses", "specialists", "fused")), ""]
    write_by_rename(args.out / "table.md", "\n".join(lines))
    if reason := problem(checked):
        raise SystemExit(f"results: error: {reason}")


def core_rows(seeds: Iterable[Seed]) -> Section:
    """What every seed has."""
    rows: Section = {f"specialist-{name}": Row(f"{name} specialist alone") for name in DOMAINS}
    rows |= {
        "uniform": Row("uniform mixture"),
        "warmup": Row("fused after warm-up"),
        "fused": Row("fused after joint"),
        **{f"trained-on-{name}": Row(f"{name} specialist, trained further") for name in DOMAINS},
        "fine-tuned": Row("best specialist fine-tuned"),
        **{key: Row(title) for key, title in MERGES.items()},
        "oracle-warmup": Row("oracle after warm-up", contender=False),
        "oracle": Row("oracle after joint", contender=False),
    }
    for seed in seeds:
        for name in DOMAINS:
            rows[f"specialist-{name}"].seeds[seed.number] = seed.specialist(name)
            rows[f"trained-on-{name}"].seeds[seed.number] = seed.single(f"trained-on-{name}", name)
        for method in MERGES:
            rows[method].seeds[seed.number] = seed.single(method)
        rows["uniform"].seeds[seed.number] = seed.fused("balanced", "warmup", "uniform")
        rows["warmup"].seeds[seed.number] = seed.fused("balanced", "warmup")
        rows["fused"].seeds[seed.number] = seed.fused("balanced", "joint")
        rows["fine-tuned"].seeds[seed.number] = seed.fine_tuned()
        rows["oracle-warmup"].seeds[seed.number] = seed.fused("balanced", "warmup", "oracle")
        rows["oracle"].seeds[seed.number] = seed.fused("balanced", "joint", "oracle")
    return rows


def alternative_rows(first: Iterable[Seed]) -> Section:
    """What only the first seed has, beside the fused model of that seed."""
    titles: dict[str, tuple[str, Callable[[Seed], Measure]]] = {
        "fused-first": ("fused after joint", lambda seed: seed.fused("balanced", "joint")),
        **{f"fine-tune-{name}": (f"{name} specialist fine-tuned", partial(_fine_tune, name)) for name in DOMAINS},
        "larger": ("one larger model", lambda seed: seed.single("larger")),
        "btx": ("BTX", lambda seed: seed.single("btx")),
    }
    return {key: Row(title, {seed.number: measure(seed) for seed in first}) for key, (title, measure) in titles.items()}


def _fine_tune(name: str, seed: Seed) -> Measure:
    return seed.single(f"fine-tune-{name}", name)


def ablation_rows(settings: Settings, seeds: Iterable[Seed]) -> Section:
    """The variants of fusing that every seed has, after joint training."""
    titles = {"balanced": "two stages, balanced", "joint-only": "joint from the start", "unbalanced": "not balanced"}
    return {
        variant.name: Row(titles[variant.name], {seed.number: seed.fused(variant.name, "joint") for seed in seeds})
        for variant in core_variants(settings)
    }


def more_ablation_rows(settings: Settings, first: Iterable[Seed]) -> Section:
    """The variants that only the first seed has, beside the method itself on that seed."""
    title = f"warm-up of {settings.warmup_steps} steps, gate of {settings.gate_hidden_size} units"
    rows = {"balanced-first": Row(title, {seed.number: seed.fused("balanced", "joint") for seed in first})}
    for variant in other_variants(settings):
        kind, number = variant.name.split("-")
        title = f"warm-up of {number} steps" if kind == "warmup" else f"gate of {number} units"
        rows[variant.name] = Row(title, {seed.number: seed.fused(variant.name, "joint") for seed in first})
    for mix in ("logits", "probabilities"):
        title = f"dense PyTorch, {mix} mixed"
        rows[f"mixture-{mix}"] = Row(title, {seed.number: seed.mixture(mix) for seed in first})
    return rows


def gate_matrices(seeds: Iterable[Seed]) -> dict[str, Any]:
    """Mean gate weights on test after joint training, domain → specialist → weight of each seed."""
    reports = [seed.report("balanced", "joint")["domains"] for seed in seeds]
    return {
        domain: {name: [report[domain]["gate"][name] for report in reports] for name in DOMAINS} for domain in DOMAINS
    }


if __name__ == "__main__":
    main()
