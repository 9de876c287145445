"""The SmolLM2 example's jobs, claims and tables: from files made up here, with numbers that are known."""

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.shared.kept_settings import keep_values
from examples.shared.scheduler import critical_paths
from examples.smollm2 import checks, results
from examples.smollm2.config import write_configs
from examples.smollm2.jobs import Jobs
from examples.smollm2.settings import FAST, FULL, TASKS, TEMPLATE, Scope, Settings, as_json
from megafuser.config.load import load_config

DOMAINS = ("text", "code", "math")
SEED = 1234


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", "utf-8")


def report(fused: dict[str, float], specialist: float, own: float) -> dict[str, Any]:
    """Each specialist has the loss `own` in its domain, and `specialist` elsewhere."""
    domains = {}
    for domain in DOMAINS:
        losses: dict[str, Any] = {"fused": fused[domain], "uniform": 2.5, "oracle": 1.0}
        losses["specialists"] = {name: own if name == domain else specialist for name in DOMAINS}
        domains[domain] = line(losses)
    every = [domain["cross_entropy"] for domain in domains.values()]
    mean: dict[str, Any] = {key: sum(one[key] for one in every) / 3 for key in ("fused", "uniform", "oracle")}
    mean["specialists"] = {name: sum(one["specialists"][name] for one in every) / 3 for name in DOMAINS}
    return {"domains": domains, "mean": line(mean)}


def line(losses: dict[str, Any]) -> dict[str, Any]:
    def ends(value: Any) -> Any:
        return {key: ends(own) for key, own in value.items()} if isinstance(value, dict) else [value - 0.1, value + 0.1]

    gate = {"text": 0.2, "code": 0.3, "math": 0.5}
    return {"cross_entropy": losses, "confidence_interval": {"cross_entropy": ends(losses)}, "gate": gate}


def scores(value: float) -> dict[str, Any]:
    results = {task: {f"{metric},none": value} for task, metric in TASKS.items()}
    return {"results": results, "n-samples": {task: {"original": 10, "effective": 8} for task in TASKS}}


def samples(task: str) -> list[dict[str, Any]]:
    """Eight answers, of which two have all the words that they may have."""
    if task == "prose_choice":
        return [{"arguments": [["q", "a"], ["q", "b"]], "resps": [[[-1.0, False]], [[-2.0, True]]]}] * 8
    options = {"until": [], "max_gen_toks": 3}
    return [{"arguments": [["q", options]], "resps": [[words]]} for words in ["a b c"] * 2 + ["a b", ""] * 3]


def write_run(out: Path, fused: dict[str, float], settings: Any) -> None:
    keep_values(as_json(settings), out / "settings.json")
    part = {"samples": 3, "groups": 2, "tokens": 1000, "response_tokens": 70}
    write(out / "data" / "counts.json", {"text train": part, "math test": part})
    write(out / "report-warmup" / "report.json", report(dict.fromkeys(DOMAINS, 1.9), 3.0, 2.0))
    write(out / "report-joint" / "report.json", report(fused, 3.0, 1.5))
    write(out / "report-last" / "report.json", report(dict.fromkeys(DOMAINS, 1.95), 3.0, 1.5))
    for name in DOMAINS:
        losses = {domain: 2.0 if name == domain else 3.0 for domain in DOMAINS}
        part = {
            domain: {"sums": [2 * loss] * 5, "tokens": [2] * 5, "sums_without_end": [loss - 0.5] * 5}
            for domain, loss in losses.items()
        }
        write(out / "losses" / f"{name}.json", part)
        write(out / "trained-on" / f"{name}.json", part)
        write(out / "trained-on" / name / "training.json", {"response_tokens": 77})
        write(out / "fine-tuned" / "all.json", part)
        # as many as the fused run's four steps
        write(out / "fine-tuned" / "all" / "training.json", {"response_tokens": 40})
        answers = {task: samples(task) for task in TASKS}
        write(out / "harness" / f"specialist-{name}.json", scores(0.25) | {"samples": answers})
    write(out / "harness" / "fused" / "results.json", scores(0.5))
    for task, own in answers.items():
        lines = "".join(json.dumps(sample) + "\n" for sample in own)
        (out / "harness" / "fused" / "samples" / "fused").mkdir(parents=True, exist_ok=True)
        (out / "harness" / "fused" / "samples" / "fused" / f"{task}.jsonl").write_text(lines, "utf-8")
    look = {"step": 10, "tokens": 500, "dev": 1.25}
    tuned = {
        "steps": 20,
        "tokens": 900,
        "lr": 1e-4,
        "kept": look,
        "curve": [{"step": 0, "tokens": 0, "dev": 2.0}, look],
    }
    for name in ("code", "math"):
        write(out / "specialists" / name / "training.json", tuned)
    write(out / "checks.json", checks.differences(out))
    write(out / "done" / "joint.json", {"seconds": 120.0, "processor_seconds": 210.0})
    (out / "run" / "joint").mkdir(parents=True)
    (out / "run" / "joint" / "best").write_text("step_000002\n", "utf-8")
    steps = [
        {
            **{"stage": stage, "split": "train", "step": step, "lr": 0.1, "response_tokens": 10},
            **{"peak_memory_gib": 2.0 + step, **{f"loss/{name}": 2.0 for name in DOMAINS}},
        }
        for stage in ("warmup", "joint")
        for step in (1, 2)
    ]
    valid = {"split": "valid", "loss": 3.0, **{f"loss/{name}": 1.0 + place for place, name in enumerate(DOMAINS)}}
    steps += [{**valid, "stage": "warmup", "step": 2}, {**valid, "stage": "joint", "step": 2, "loss/text": 4.0}]
    (out / "run" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), "utf-8")


class WordTokenizer:
    """Stands in for SmolLM2's tokenizer: tokens are words."""

    @classmethod
    def from_pretrained(cls, path: Path) -> "WordTokenizer":
        assert path.name == "text"
        return cls()

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [1] * len(text.split())}


def tables(out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[dict[str, list[str]], str]:
    monkeypatch.setattr(sys, "argv", ["results.py", "--out", str(out), *options])
    monkeypatch.setattr(results, "AutoTokenizer", WordTokenizer)
    results.main()
    text = (out / "table.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows}, text


def test_the_tables_come_from_the_runs_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, {"text": 1.8, "code": 2.01, "math": 2.03}, FULL)
    rows, text = tables(tmp_path, monkeypatch, "--no-trained-on")
    assert "| text specialist alone | 2.000 (1.900–2.100) | 3.000 (2.900–3.100) |" in text
    # the tasks' table comes after the losses'
    # Wilson's intervals for 4 and 2 of 8
    for title, score in (("fused after joint", "50.0 % (21.5–78.5"), ("text specialist alone", "25.0 % (7.1–59.1")):
        assert rows[title] == [f"{score}; 25 % cut off)"] * 3 + [f"{score})"]
    assert "| fused after joint | **1.800** (1.700–1.900) | 2.010 (1.910–2.110) |" in text
    assert "| fused after warm-up | 1.900 (1.800–2.000) | **1.900** (1.800–2.000) |" in text
    assert rows["at most 1 % above the best specialist on code"] == ["yes", "yes (-0.0100)"]
    assert rows["at most 1 % above the best specialist on math"] == ["yes", "**no** (+0.0100)"]
    assert rows["before fusing: the math specialist is the best of the three on math"] == ["", "yes (-1.0000)"]
    assert "| code specialist alone | 2.500 (with it +0.500) | 1.500 (with it +0.500) |" in text
    assert rows["warmup, step 2"] == ["1.000", "2.000", "3.000", "2.000"]
    assert rows["joint, step 2 (chosen)"] == ["4.000", "2.000", "3.000", "3.000"]
    assert rows["fused after joint, last state"][0].startswith("1.950")
    assert "The 3 test samples of math are of 2 templates only" in text
    assert rows["below the best specialist on code"] == ["", "**no** (+0.0100)"]
    assert rows["mean below the math specialist alone"] == ["yes", "yes (-0.7200)"]
    assert rows["math"] == ["900", "0.0001", "2.000", "10 of 20", "1.250"]
    assert rows["text train"] == ["3", "2", "1,000", "70"] and rows["joint"] == ["2.0", "3.5"] == rows["together"]
    assert "Made by `bash examples/smollm2/run.sh --no-trained-on` with Python 3." in text
    assert "megatron-core 0." in text
    assert "joint_steps 100, " in text and "joint 4.0 GiB" in text
    assert "--fast" not in text and "trained further" not in text
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 2
    before = {path: path.read_bytes() for path in [tmp_path / "table.md", *(tmp_path / "plots").glob("*.svg")]}
    tables(tmp_path, monkeypatch, "--no-trained-on")
    assert {path: path.read_bytes() for path in before} == before


def test_specialists_that_were_trained_on_have_rows_and_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, dict.fromkeys(DOMAINS, 1.8), FAST)
    rows, text = tables(tmp_path, monkeypatch)
    assert rows["code specialist, trained further"][:2] == ["3.000 (3.000–3.000)", "2.000 (2.000–2.000)"]
    assert rows["code specialist, trained further"][4] == "77"
    assert rows["mean below the code specialist, trained further"] == ["", "yes (-0.8667)"]
    assert "Made by `bash examples/smollm2/run.sh --fast` with" in text
    assert text.startswith("**Made with `--fast`: the first 2 layers")


def test_without_the_harness_its_table_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, dict.fromkeys(DOMAINS, 1.8), FULL)
    shutil.rmtree(tmp_path / "harness")
    # as after a run that had it
    write(tmp_path / "done" / "evaluate-fused.json", {"seconds": 600.0, "processor_seconds": 600.0})
    rows, text = tables(tmp_path, monkeypatch, "--no-harness")
    assert "evaluate-fused" not in rows and rows["together"] == ["2.0", "3.5"]
    assert "Made by `bash examples/smollm2/run.sh --no-harness` with" in text
    assert "tasks of the harness" not in text and "cross-entropy on test" in text


@pytest.mark.parametrize("loss", [2.001, float("nan")])
def test_implementations_that_disagree_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    write_run(tmp_path, dict.fromkeys(DOMAINS, 1.8), FULL)
    monkeypatch.setattr(sys, "argv", ["checks.py", "--out", str(tmp_path)])
    (tmp_path / "checks.json").unlink()
    checks.main()
    assert len(json.loads((tmp_path / "checks.json").read_text("utf-8"))) == 9
    part = {domain: {"sums": [3.001], "tokens": [1]} for domain in DOMAINS}
    write(tmp_path / "losses" / "text.json", part | {"text": {"sums": [loss], "tokens": [1]}})
    with pytest.raises(SystemExit, match=r"differ by more than 0\.0001 nats: .*text specialist on text"):
        checks.main()


def test_one_model_fine_tuned_has_a_row_and_must_have_seen_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, dict.fromkeys(DOMAINS, 1.8), FULL)
    rows, text = tables(tmp_path, monkeypatch, "--fine-tuned")
    assert rows["one model fine-tuned on the same data"][4] == "40"
    assert rows["mean below one model fine-tuned on the same data"] == ["", "yes (-0.8667)"]
    assert "Made by `bash examples/smollm2/run.sh --fine-tuned` with" in text
    write(tmp_path / "fine-tuned" / "all" / "training.json", {"response_tokens": 39})
    with pytest.raises(SystemExit, match="fine-tuned on 39 response tokens, the fused run on 40"):
        tables(tmp_path, monkeypatch, "--fine-tuned")


@pytest.mark.parametrize(
    ("scope", "fewer"),
    [(Scope(trained_on=False, harness=False), 10), (Scope(), 0), (Scope(fine_tuned=True), -2)],
)
def test_the_jobs_fit_together_and_into_the_time(scope: Scope, fewer: int) -> None:
    jobs = Jobs(FULL, Path("/out"), Path("/downloads"), scope).all()
    assert len(jobs) == len(Jobs(FULL, Path("/out"), Path("/downloads")).all()) - fewer
    ranks = critical_paths(jobs)
    assert max(ranks, key=lambda name: ranks[name]) == "source"
    assert {job.name for job in jobs if not any(job.name in other.needs for other in jobs)} == {"tables"}
    # what would make joint training worthless ends the run before it
    (joint,) = (job for job in jobs if job.name == "joint")
    (check,) = (job for job in jobs if job.name == "check")
    assert "check" in joint.after and {"report-warmup", *(f"losses-{name}" for name in DOMAINS)} == set(check.needs)
    # one at a time: the whole run within what the example promises
    assert sum(job.seconds for job in jobs) <= 60 * (170 if scope.fine_tuned else 150)
    for job in jobs:
        scripts = [Path(part) for part in job.command if part.endswith(".py")]
        assert all(path.exists() for path in scripts), job.name
        modules = [module for option, module in itertools.pairwise(job.command) if option == "-m"]
        assert len(scripts) + len(modules) == 1 and all(map(importlib.util.find_spec, modules)), job.name
    outputs = [job.output for job in jobs]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("settings", [FULL, FAST], ids=["full", "fast"])
def test_the_jobs_overrides_fit_the_configurations(tmp_path: Path, settings: Settings) -> None:
    write_configs(settings, tmp_path)
    found = {}
    for job in Jobs(settings, tmp_path, tmp_path).all():
        if "megafuser" in job.command:
            file = tmp_path / ("test.yaml" if job.name.startswith("report") else "config.yaml")
            found[job.name] = load_config(str(file), [word for word in job.command if "=" in word])
    assert found["warmup"].evaluation.interval == found["warmup"].checkpoint.interval == settings.warmup_steps
    # the specialists' context is longer than the run's samples
    assert found["evaluate-fused"].data.sequence_length == 1024
    assert len(found) == 6


def test_the_configurations_are_valid_and_differ_in_what_validates(tmp_path: Path) -> None:
    for own in (FULL, FAST):
        write_configs(own, tmp_path)
        train, test = (load_config(str(tmp_path / name), []) for name in ("config.yaml", "test.yaml"))
        assert train.joint.steps == own.joint_steps and train.joint.samples_per_domain == own.samples_per_domain
        assert train.data.domains["math"].valid != test.data.domains["math"].valid
        assert train.data.domains["math"].train == test.data.domains["math"].train
        assert all(specialist.template == TEMPLATE for specialist in train.specialists)
        for name in ("text", "code", "math"):
            # what fusion sees is not what the specialists were tuned on
            assert train.data.domains[name].train == (str(tmp_path / "data" / f"{name}.fusion.jsonl"),)
    assert train.optimizer.gate_lr_multiplier == 10.0
    # what was asked for: full models, enough samples and steps, short fine-tunes
    assert FULL.layers is None and FULL.samples_per_domain >= 4
    assert FULL.joint_steps >= 100 and FULL.tune_tokens <= 300_000
