"""Puts the run together: results.json, table.md and plots, from the run's own files alone.

python -m examples.smollm2.results --out OUT [--no-trained-on] [--no-harness] [--fine-tuned]
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from examples.quickstart.samples import DOMAINS
from examples.shared.files import read_json, write_by_rename
from examples.shared.kept_settings import read_values
from examples.shared.measures import COLUMNS, Measure, Row, intervals, mean_losses, right_interval, trained_tokens
from examples.shared.tables import format_claims, format_gate, format_rows
from examples.smollm2.claims import claims
from examples.smollm2.jobs import TUNED, Jobs
from examples.smollm2.plots import draw
from examples.smollm2.settings import FAST, TASKS, Scope, Settings
from megafuser.config.run_directory import step_number

STAGES = ("warmup", "joint")
# Rows that went through exactly the same samples.
SAME_DATA = ("fine-tuned", "fused")
PACKAGES = ("megafuser", "torch", "transformers", "megatron-core", "lm-eval")


def main() -> None:
    """Writes everything below `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    Scope.add_to(parser)
    args = parser.parse_args()
    scope = Scope.of(args)
    settings = Settings(**read_values(args.out / "settings.json"))
    rows = loss_rows(args.out, settings.seed, scope)
    found = claims({key: row.seeds[settings.seed] for key, row in rows.items()}, settings.seed)
    gates = {stage: read_json(args.out / f"report-{stage}" / "report.json")["domains"] for stage in STAGES}
    gate = {
        stage: {domain: {name: [own[domain]["gate"][name]] for name in DOMAINS} for domain in DOMAINS}
        for stage, own in gates.items()
    }
    results = {
        "settings": dataclasses.asdict(settings),
        "command": command(settings, scope),
        "versions": versions(),
        "data": read_json(args.out / "data" / "counts.json"),
        "rows": {key: dataclasses.asdict(row.seeds[settings.seed]) for key, row in rows.items()},
        "claims": [dataclasses.asdict(claim) for claim in found],
        "without_end": without_end(args.out),
        "dev": dev_curve(args.out / "run" / "metrics.jsonl"),
        "chosen": step_number((args.out / "run" / "joint" / "best").read_text("utf-8").strip()),
        "gate": gate,
        "harness": harness_scores(args.out) if scope.harness else {},
        "tuned": {name: read_json(args.out / "specialists" / name / "training.json") for name in TUNED},
        "seconds": seconds(args.out, [job.name for job in Jobs(settings, args.out, args.out, scope).all()]),
        "machine": machine(),
        "peak_memory_gib": peak_memory(args.out / "run" / "metrics.jsonl"),
        "differences": read_json(args.out / "checks.json"),
    }
    draw(args.out, rows)
    write_by_rename(args.out / "results.json", json.dumps(results, indent=1) + "\n")
    lines = [] if settings.layers is None else [cut_warning(settings), ""]
    lines += ["### SmolLM2: cross-entropy on test", "", *format_rows(rows.values(), solved=False), ""]
    lines += [interval_warning(results["data"]["math test"]), ""]
    lines += ["### SmolLM2: cross-entropy on test without the end token", "", *format_without_end(results), ""]
    lines += ["### SmolLM2: claims", "", *format_claims(found), ""]
    if scope.harness:
        lines += ["### SmolLM2: tasks of the harness", "", *format_scores(results["harness"]), ""]
    lines += ["### SmolLM2: cross-entropy on dev, by step", "", *format_dev(results["dev"], results["chosen"]), ""]
    for stage, title in zip(STAGES, ("warm-up", "joint"), strict=True):
        lines += [f"### SmolLM2: gate after {title}", "", *format_gate(gate[stage]), ""]
    lines += ["### SmolLM2: what it took", "", *format_costs(results), ""]
    lines += [*(f"![{name}](plots/{name}.svg)" for name in ("losses", "steps")), ""]
    write_by_rename(args.out / "table.md", "\n".join(lines))
    own, fused = (rows[key].seeds[settings.seed].response_tokens if key in rows else None for key in SAME_DATA)
    if own not in (None, fused):
        raise SystemExit(
            f"smollm2_results: error: fine-tuned on {own} response tokens, the fused run on {fused}; run all again "
            "with another --out"
        )


def cut_warning(settings: Settings) -> str:
    """What a table of `--fast` begins with."""
    return (
        f"**Made with `--fast`: the first {settings.layers} layers of SmolLM2 and a handful of steps. It shows that "
        "every part works, and says nothing about fusing.**"
    )


def interval_warning(math: Mapping[str, int]) -> str:
    """What the intervals of math do not say."""
    return (
        f"In brackets: 95 % intervals over samples. The {math['samples']} test samples of math are of {math['groups']} "
        "templates only; how much other templates would change its numbers, its intervals do not say."
    )


def loss_rows(out: Path, seed: int, scope: Scope) -> dict[str, Row]:
    """Every model's losses on test."""
    rows = {f"specialist-{name}": Row(f"{name} specialist alone") for name in DOMAINS}
    measures = {f"specialist-{name}": reported(out, "warmup", "specialists", name) for name in DOMAINS}
    rows |= {"uniform": Row("uniform mixture"), "warmup": Row("fused after warm-up"), "fused": Row("fused after joint")}
    rows["last"] = Row("fused after joint, last state")
    measures["uniform"] = reported(out, "warmup", "uniform")
    for key, name in (("warmup", "warmup"), ("fused", "joint"), ("last", "last")):
        own = reported(out, name, "fused")
        # those of the whole training, whichever state of it was chosen, as for the fine-tunes
        tokens = trained_tokens(out / "run" / "metrics.jsonl", "warmup" if name == "warmup" else "joint")
        measures[key] = Measure(own.losses, own.intervals, None, tokens)
    single = {f"trained-on-{name}": out / "trained-on" / name for name in DOMAINS if scope.trained_on}
    titles = {f"trained-on-{name}": f"{name} specialist, trained further" for name in DOMAINS}
    if scope.fine_tuned:
        single["fine-tuned"], titles["fine-tuned"] = out / "fine-tuned" / "all", "one model fine-tuned on the same data"
    for key, path in single.items():
        rows[key] = Row(titles[key])
        part, tokens = read_json(path.with_suffix(".json")), read_json(path / "training.json")["response_tokens"]
        measures[key] = Measure(mean_losses(part), intervals(part, seed), None, tokens)
    for name in DOMAINS:
        # jointly trained weights: parts of the fused model, not what one has without fusing
        rows[f"part-{name}"] = Row(f"{name} specialist as joint training leaves it, alone", contender=False)
        measures[f"part-{name}"] = reported(out, "joint", "specialists", name)
    for key, stage in (("oracle-warmup", "warmup"), ("oracle", "joint")):
        rows[key] = Row(f"oracle after {'warm-up' if stage == 'warmup' else stage}", contender=False)
        measures[key] = reported(out, stage, "oracle")
    for key, row in rows.items():
        row.seeds[seed] = measures[key]
    return rows


def without_end(out: Path) -> dict[str, dict[str, float]]:
    """By specialist and domain: the loss of all response tokens but the end token."""
    found = {}
    for name in DOMAINS:
        losses = read_json(out / "losses" / f"{name}.json")
        part = {
            domain: {"sums": own["sums_without_end"], "tokens": [count - 1 for count in own["tokens"]]}
            for domain, own in losses.items()
        }
        found[name] = mean_losses(part)
    return found


def format_without_end(results: Mapping[str, Any]) -> list[str]:
    """A Markdown table of the specialists; in brackets how much lower the loss with the end token is, or higher."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for name, own in results["without_end"].items():
        whole = results["rows"][f"specialist-{name}"]["losses"]
        cells = [f"{own[column]:.3f} (with it {whole[column] - own[column]:+.3f})" for column in COLUMNS]
        lines.append(f"| {name} specialist alone | " + " | ".join(cells) + " |")
    return lines


def dev_curve(metrics: Path) -> list[dict[str, Any]]:
    """The fused model's loss on dev each time that it was validated, with the mean over the domains."""
    curve = []
    for line in map(json.loads, metrics.read_text("utf-8").splitlines()):
        if line["split"] == "valid":
            losses = {domain: line[f"loss/{domain}"] for domain in DOMAINS}
            mean = sum(losses.values()) / len(losses)
            curve.append({"stage": line["stage"], "step": line["step"], **losses, "mean": mean})
    return curve


def format_dev(curve: list[dict[str, Any]], chosen: int) -> list[str]:
    """A Markdown table, a line for each validation; `chosen` is the step of joint training that is reported."""
    lines = ["| fused model after | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for look in curve:
        losses = " | ".join(f"{look[column]:.3f}" for column in COLUMNS)
        is_chosen = (look["stage"], look["step"]) == ("joint", chosen)
        lines.append(f"| {look['stage']}, step {look['step']}{' (chosen)' if is_chosen else ''} | {losses} |")
    return lines


def reported(out: Path, stage: str, what: str, name: str | None = None) -> Measure:
    """One model of a stage's report: `fused`, `uniform`, `oracle`, or `specialists` with a name."""
    report = read_json(out / f"report-{stage}" / "report.json")
    lines = {**report["domains"], "mean": report["mean"]}

    def value(of: Mapping[str, Any]) -> Any:
        return of[what] if name is None else of[what][name]

    losses = {column: value(lines[column]["cross_entropy"]) for column in COLUMNS}
    ends = {column: value(lines[column]["confidence_interval"]["cross_entropy"]) for column in COLUMNS}
    return Measure(losses, {column: (low, high) for column, (low, high) in ends.items()})


def harness_scores(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """For each model and task its score, the number of questions, and of answers that were cut off."""
    tokenizer = AutoTokenizer.from_pretrained(out / "specialists" / "text")
    files = {f"{name} specialist alone": out / "harness" / f"specialist-{name}.json" for name in DOMAINS}
    files["fused after joint"] = out / "harness" / "fused" / "results.json"
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for model, file in files.items():
        found = read_json(file)
        scores[model] = {
            task: {
                "score": found["results"][task][f"{metric},none"],
                "questions": found["n-samples"][task]["effective"],
                "cut": cut_off(found["samples"][task] if "samples" in found else fused_samples(out, task), tokenizer),
            }
            for task, metric in TASKS.items()
        }
    return scores


def fused_samples(out: Path, task: str) -> list[dict[str, Any]]:
    """The fused model's answers to a task, as the harness keeps them."""
    path = out / "harness" / "fused" / "samples" / "fused" / f"{task}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def cut_off(samples: list[dict[str, Any]], tokenizer: Any) -> int:
    """How many answers have as many tokens as they may have; 0 where nothing is generated."""
    count = 0
    for sample in samples:
        options = sample["arguments"][0][1]
        if isinstance(options, dict):  # else one of the choices
            answer = tokenizer(sample["resps"][0][0], add_special_tokens=False)["input_ids"]
            count += len(answer) >= options["max_gen_toks"]
    return count


def format_scores(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A Markdown table: percent, its 95 % interval over questions, and the share of answers that were cut off."""
    first = next(iter(scores.values()))
    titles = [f"{task} ({TASKS[task]}, {first[task]['questions']} questions)" for task in TASKS]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for model, own in scores.items():
        cells = []
        for task in TASKS:
            score, count, cut = (own[task][key] for key in ("score", "questions", "cut"))
            right = round(score * count)
            low, high = right_interval([index < right for index in range(int(count))])
            ended = f"; {100 * cut / count:.0f} % cut off" if cut else ""
            cells.append(f"{100 * score:.1f} % ({100 * low:.1f}–{100 * high:.1f}{ended})")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def seconds(out: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """What each of a run's jobs took over all its starts, by the clock and of all processors."""
    kinds = ("seconds", "processor_seconds")
    marks = {path.stem: read_json(path) for path in sorted((out / "done").glob("*.json"))}
    return {
        name: {kind: mark[kind] for kind in kinds} for name, mark in marks.items() if name in names and name != "tables"
    }


def machine() -> str:
    """Threads and processor that the run had."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{threads} thread{'' if threads == '1' else 's'} of {found[1].strip() if found else platform.machine()}"


def command(settings: Settings, scope: Scope) -> str:
    """What makes this run again."""
    return " ".join(["bash examples/smollm2/run.sh", *["--fast"] * (settings == FAST), *scope.options()])


def versions() -> dict[str, str]:
    """Of what the run is made with, and the commit where there is one."""
    found = {"Python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(git, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return found | ({} if described is None or described.returncode else {"commit": described.stdout.strip()})


def peak_memory(metrics: Path) -> dict[str, float]:
    """The largest resident set of each stage's process, in GiB."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    return {
        stage: max(line["peak_memory_gib"] for line in lines if line["split"] == "train" and line["stage"] == stage)
        for stage in STAGES
    }


def format_costs(results: Mapping[str, Any]) -> list[str]:
    """Data, fine-tunes, minutes and memory."""
    lines = ["| data | samples | groups | tokens | of responses |", "|---|" + "---:|" * 4]
    for part, own in results["data"].items():
        numbers = (own[key] for key in ("samples", "groups", "tokens", "response_tokens"))
        lines.append(f"| {part} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    lines += ["", "| fine-tune | tokens | learning rate | dev loss before | kept after step | dev loss then |"]
    lines.append("|---|" + "---:|" * 5)
    for name, own in results["tuned"].items():
        kept = own["kept"]
        cells = (f"{own['tokens']:,}", f"{own['lr']:g}", f"{own['curve'][0]['dev']:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {kept['step']} of {own['steps']} | {kept['dev']:.3f} |")
    lines += ["", f"| job ({results['machine']}) | minutes | of all processors |", "|---|---:|---:|"]
    jobs = results["seconds"]
    together = {kind: sum(own[kind] for own in jobs.values()) for kind in ("seconds", "processor_seconds")}
    for name, own in [*jobs.items(), ("together", together)]:
        lines.append(f"| {name} | {own['seconds'] / 60:.1f} | {own['processor_seconds'] / 60:.1f} |")
    memory = ", ".join(f"{stage} {own:.1f} GiB" for stage, own in results["peak_memory_gib"].items())
    settings = results["settings"]
    values = ", ".join(f"{name} {value}" for name, value in settings.items())
    lines += ["", f"Made by `{results['command']}` with {', '.join(map(' '.join, results['versions'].items()))}."]
    lines += ["", f"Settings: {values}."]
    worst = max(results["differences"].values())
    lines += ["", f"Most memory of the fused run's processes: {memory}. "]
    lines[-1] += f"`megafuser report` and plain transformers differ by at most {worst:.1e} nats on the specialists."
    return lines


if __name__ == "__main__":
    main()
