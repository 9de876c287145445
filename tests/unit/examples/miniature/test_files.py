"""The miniature's tables from a run's files: made up here, with numbers that are known."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.miniature import results
from examples.miniature.fused_config import core_variants, other_variants
from examples.miniature.settings import FULL, write_settings

DOMAINS = ("text", "code", "math")
SAMPLES = 40


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", "utf-8")


def part(loss: float) -> dict[str, Any]:
    """Every sample has two tokens, and the losses of half of the samples are as far above as the others' are below."""
    sums = [2 * (loss + (0.1 if index % 2 else -0.1)) for index in range(SAMPLES)]
    return {domain: {"sums": sums, "tokens": [2] * SAMPLES} for domain in DOMAINS}


def evaluation(loss: float, right: int, templates: tuple[str, ...]) -> dict[str, Any]:
    """The first template is the best."""
    answers = ["5"] * right + ["6"] * (10 - right)
    return {
        name: {"dev": part(loss + rank), "test": part(loss + rank), "answers": answers}
        for rank, name in enumerate(templates)
    }


def report(fused: float, specialists: float) -> dict[str, Any]:
    losses = {"fused": fused, "uniform": 3.0, "oracle": 1.0}
    ends = {name: [own - 0.1, own + 0.1] for name, own in losses.items()}
    line = {
        "cross_entropy": {**losses, "specialists": dict.fromkeys(DOMAINS, specialists)},
        "confidence_interval": {"cross_entropy": ends},
        "gate": {"text": 0.2, "code": 0.3, "math": 0.5},
    }
    return {"domains": dict.fromkeys(DOMAINS, line), "mean": line}


def write_seed(out: Path, settings: Any, seed: int, fused: float, specialists: float = 2.0) -> None:
    own, first = out / f"seed{seed}", seed == settings.seeds[0]
    training = {"flat": True, "steps": 5, "tokens": 9, "dev": 2.0, "parameters": 7, "response_tokens": 30}
    training["curve"] = [{"tokens": 4, "dev": 2.5}, {"tokens": 9, "dev": 2.0}]
    for name in DOMAINS:
        write(own / "specialists" / name / "training.json", training)
        write(own / "evaluations" / f"specialist-{name}.json", evaluation(specialists, 4, (name,)))
        write(own / "evaluations" / f"trained-on-{name}.json", evaluation(1.9, 4, (name,)))
    singles = {name: DOMAINS for name in ("linear", "ties", "dare")}
    if first:
        singles |= {**{f"fine-tune-{name}": (name,) for name in DOMAINS}, "larger": ("text",), "btx": ("text",)}
        steps = [{"stage": stage, "step": 1, "loss": 2.25} for stage in ("warmup", "joint")]
        for mix in ("logits", "probabilities"):
            write(own / "evaluations" / f"mixture-{mix}.json", {"test": part(1.603), "steps": steps})
    else:
        singles["fine-tune-best"] = DOMAINS
    for name, templates in singles.items():
        write(own / "evaluations" / f"{name}.json", evaluation(2.5, 5, templates))
        if name not in ("linear", "ties", "dare"):
            write(own / "models" / name / "training.json", training | {"response_tokens": 20})
    others = other_variants(settings) if first else []
    for variant in [*core_variants(settings), *others]:
        metrics = [
            {"stage": stage, "split": split, "step": 1, "loss": 2.0, "lr": 0.1, "response_tokens": 10}
            for stage in ("warmup", "joint")
            for split in ("train", "valid")
        ]
        path = own / "runs" / variant.name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in metrics), "utf-8")
        for stage in ("warmup", "joint"):
            loss = fused + (0.2 if stage == "warmup" else 0.0) + (0.05 if variant.name == "unbalanced" else 0.0)
            write(own / "reports" / f"{variant.name}-{stage}" / "report.json", report(loss, 2.0))
            answers = own / "answers" / f"{variant.name}-{stage}.jsonl"
            answers.parent.mkdir(exist_ok=True)
            answers.write_text("".join(json.dumps({"completion": "5"}) + "\n" for _ in range(10)), "utf-8")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_settings(FULL, tmp_path / "settings.json")
    (tmp_path / "data").mkdir()
    kinds = ["chain_sum"] * 8 + ["basic_arithmetic"] * 2
    problems = [json.dumps({"prompt": "", "answer": "5", "kind": kind}) for kind in kinds]
    (tmp_path / "data" / "problems.jsonl").write_text("\n".join(problems) + "\n", "utf-8")
    write_seed(tmp_path, FULL, 1, fused=1.6)
    write_seed(tmp_path, FULL, 2, fused=1.8)
    return tmp_path


def tables(out: Path, monkeypatch: pytest.MonkeyPatch, seeds: str) -> tuple[str, dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["results.py", "--out", str(out), "--seeds", seeds])
    results.main()
    return (out / "table.md").read_text("utf-8"), json.loads((out / "results.json").read_text("utf-8"))


def test_the_tables_come_from_the_runs_files(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, results = tables(out, monkeypatch, "1,2")
    row = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert row["text specialist alone"][0].startswith("2.000 ± 0.000 (1.9")
    assert row["two stages, balanced"][3] == "**1.700** ± 0.141 (1.600–1.800)"
    assert row["two stages, balanced"][4:] == ["100.0 ± 0.0 % (72.2–100.0; 100.0, 100.0)", "20"]
    assert row["not balanced"][0].startswith("1.750 ± 0.141")
    assert row["best specialist fine-tuned (text specialist)"][4] == "50.0 ± 0.0 % (23.7–76.3; 0.0, 62.5)"
    assert "| right answers (basic_arithmetic, chain_sum) |" in text
    assert row["linear merge (text template)"][0].startswith("2.500 ± 0.000")
    assert row["below the best specialist on math"] == ["yes", "yes (-0.4000)", "yes (-0.2000)", "-0.3000 ± 0.1414"]
    assert row["two stages below joint from the start"][1:] == [
        "**no** (+0.0000)",
        "**no** (+0.0000)",
        "+0.0000 ± 0.0000",
    ]
    assert row["mean below BTX"][1:] == ["yes (-0.9000)", "–", "–"]
    assert row["math"] == ["0.20 ± 0.00 (0.18)", "0.30 ± 0.00 (0.39)", "0.50 ± 0.00 (0.43)"]
    assert results["checks"]["worst"] < 1e-12
    assert results["checks"]["mixture"]["mean"] == pytest.approx(0.003)
    assert "less the fused run, test loss: text +0.0030, code +0.0030, math +0.0030, mean +0.0030 nats." in text
    assert results["checks"]["steps"] == {"warmup": 0.25, "joint": 0.25}
    assert "### Core (seeds 1, 2)" in text and "### More ablations (seed 1)" in text
    assert len(list((out / "plots").glob("*.svg"))) == 3
    before = {path: path.read_bytes() for path in [out / "table.md", *(out / "plots").glob("*.svg")]}
    tables(out, monkeypatch, "1,2")
    assert {path: path.read_bytes() for path in before} == before


def test_a_seed_alone_has_its_own_tables(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, results = tables(out, monkeypatch, "2")
    assert "### Core (seed 2)" in text and "### Alternatives" not in text and "seed 1" not in text
    assert "**1.800** (1.700–1.900)" in text and list(results["rows"]["fused"]) == ["2"]


def test_implementations_that_disagree_end_the_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(out / "seed2" / "evaluations" / "specialist-code.json", evaluation(2.001, 4, ("code",)))
    with pytest.raises(SystemExit, match=r"differ by 1\.0e-03"):
        tables(out, monkeypatch, "1,2")


def test_a_training_loss_that_is_not_a_number_is_not_hidden(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = out / "seed1" / "evaluations" / "mixture-logits.json"
    content = json.loads(path.read_text("utf-8"))
    content["steps"].append({"stage": "joint", "step": 1, "loss": float("nan")})
    write(path, content)
    text, _ = tables(out, monkeypatch, "1,2")
    assert "Largest difference of a training step's loss between the two: warmup 2.5e-01, joint nan nats." in text


def test_a_fine_tune_on_other_samples_ends_the_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = out / "seed2" / "models" / "fine-tune-best" / "training.json"
    write(path, json.loads(path.read_text("utf-8")) | {"response_tokens": 21})
    with pytest.raises(SystemExit, match=r"on other samples .*'seed 2, fine-tune-best': 1"):
        tables(out, monkeypatch, "1,2")
    assert "went through exactly as many response tokens; not seed 2, fine-tune-best." in (out / "table.md").read_text()


@pytest.mark.parametrize(("loss", "gap"), [(1.607, r"\+0\.0070"), (1.593, r"-0\.0070"), (float("nan"), r"\+nan")])
def test_a_dense_implementation_far_from_the_fused_run_ends_the_run(
    out: Path, monkeypatch: pytest.MonkeyPatch, loss: float, gap: str
) -> None:
    path = out / "seed1" / "evaluations" / "mixture-logits.json"
    write(path, json.loads(path.read_text("utf-8")) | {"test": part(loss)})
    with pytest.raises(SystemExit, match=rf"mean test loss less the fused run's is {gap} nats, beyond 0\.005"):
        tables(out, monkeypatch, "1,2")
    assert "less the fused run, test loss: text" in (out / "table.md").read_text("utf-8")
