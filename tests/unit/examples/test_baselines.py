"""The example that compares a fused model with what else could be done: its table, its merges, its batches."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from megafuser.config.load import load_config
from tests.parallel.launch import ROOT

DIRECTORY = Path(__file__).parents[3] / "examples" / "baselines"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"baselines_{name}", DIRECTORY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(fused: float, **specialists: float) -> dict[str, Any]:
    """A report on one domain."""
    losses = {"fused": fused, "uniform": 3.0, "oracle": 1.0, "specialists": specialists}
    ends = {name: [own - 0.1, own + 0.1] for name, own in specialists.items()}
    interval = {name: [own - 0.1, own + 0.1] for name, own in losses.items() if name != "specialists"}
    line = {
        "cross_entropy": losses,
        "confidence_interval": {"cross_entropy": {**interval, "specialists": ends}},
        "samples": 3,
        "response_tokens": 40,
    }
    return {"domains": {"text": line}, "overall": line, "mean": line}


BASELINES = {"linear-text": 6.0, "linear-code": 5.0, "ties-text": 4.0, "ties-code": 4.5, "finetuned": 1.9}


def test_the_table_has_every_baseline_and_each_merge_at_its_best() -> None:
    table = script("table")
    reports = {"warmup": report(1.8, text=2.0, code=2.5), "joint": report(1.7, text=1.0, code=2.5)}
    rows = table.table_rows(reports | {"baselines": report(3.0, **BASELINES)}, "text")
    values = {name: row["mean"]["cross_entropy"] for name, row in rows.items()}
    assert values == {
        "text specialist alone": 2.0,
        "code specialist alone": 2.5,
        "uniform mixture": 3.0,
        "linear merge, prompts as code's": 5.0,
        "TIES merge, prompts as text's": 4.0,
        "text specialist fine-tuned": 1.9,
        "fused after warm-up": 1.8,
        "fused after joint": 1.7,
        "oracle over the specialists": 1.0,
    }
    lines = table.format_table(rows, ["text"])
    assert [line.split("|")[1].strip() for line in lines if "**" in line] == ["fused after joint"]
    assert "**1.700** (1.600" in next(line for line in lines if "fused after joint" in line)


def test_reports_on_other_samples_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = report(3.0, **BASELINES)
    other["domains"] = {"text": other["domains"]["text"] | {"samples": 2}}
    for name, content in (("warmup", report(1.8, text=2.0)), ("baselines", other)):
        path = tmp_path / f"report-{name}" / "report.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["table.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="not on the same samples"):
        script("table").main()


def test_what_an_interrupted_conversion_left_is_not_merged(tmp_path: Path) -> None:
    for name in ("text", "code", ".math.tmp-7-0123abcd"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in script("merge")._specialists(tmp_path)] == ["code", "text"]


@pytest.mark.parametrize(("clip_grad", "moved"), [(0.0, 10.0), (0.5, 0.5)])
def test_fine_tuning_clips_as_training_does(monkeypatch: pytest.MonkeyPatch, clip_grad: float, moved: float) -> None:
    """0 clips nothing, and does not make all gradients zero."""
    module = script("finetune")
    model, gradients = torch.nn.Linear(1, 1, bias=False), []

    def step(model: torch.nn.Module, *_: Any) -> int:
        model.weight.grad = torch.full((1, 1), 10.0)
        return 5

    class Recorded(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            gradients.append(model.weight.grad.item())
            super().step()

    monkeypatch.setattr(module, "step", step)
    monkeypatch.setattr(module.torch.optim, "AdamW", Recorded)
    config = SimpleNamespace(
        joint=SimpleNamespace(lr=0.1, min_lr=0.0),
        optimizer=SimpleNamespace(betas=(0.9, 0.95), weight_decay=0.0, clip_grad=clip_grad),
    )
    assert module.fit(model, itertools.repeat([]), 0, 12, config) == 15
    assert gradients == pytest.approx([moved] * 3, rel=1e-4)


def test_a_ties_merge_leaves_its_base_out_of_the_models() -> None:
    directories = [Path("s/code"), Path("s/math"), Path("s/text")]
    merge = script("merge")
    own = merge._recipe("ties", directories, None, Path("s/text"))
    assert (own["base_model"], [model["model"] for model in own["models"]]) == ("s/text", ["s/code", "s/math"])
    other = merge._recipe("ties", directories, "org/base", Path("s/text"))
    assert (other["base_model"], len(other["models"])) == ("org/base", 3)
    linear = merge._recipe("linear", directories, None, Path("s/text"))
    assert sum(model["parameters"]["weight"] for model in linear["models"]) == pytest.approx(1)


def test_fine_tuning_takes_as_many_samples_of_each_domain_and_goes_through_all() -> None:
    steps = script("finetune").batches([range(3), range(100, 105)], 2, Random(0))
    drawn = [next(steps) for _ in range(3)]
    for step in drawn:
        assert [domain for domain, _ in step] == [range(3)] * 2 + [range(100, 105)] * 2
    first = [sample for step in drawn for domain, sample in step if domain == range(3)]
    assert sorted(first[:3]) == sorted(first[3:]) == [0, 1, 2]


def write_run(run: Path, stage: str, step: int, tokens: int, made: str) -> None:
    """A checkpoint that is the last of its stage, and the steps up to it in the run's metrics."""
    checkpoint = run / stage / f"step_{step:06d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "manifest.json").write_text(json.dumps({"made": made}), "utf-8")
    (run / stage / "latest").write_text(f"{checkpoint.name}\n", "utf-8")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for number in range(1, step + 1):
            line = {"stage": stage, "split": "train", "step": number, "response_tokens": tokens}
            metrics.write(json.dumps(line) + "\n" + json.dumps(line | {"split": "valid"}) + "\n")


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`describe` on a run below `tmp_path` that was warmed up: returns the line of its refusal, or what it said."""
    monkeypatch.chdir(DIRECTORY.parents[1])
    write_run(tmp_path / "run", "warmup", 2, 10, "first")

    def describe(*options: str) -> str:
        common = ["--config", "examples/quickstart/config.yaml", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["b.py", "describe", *common, f"run_dir={tmp_path / 'run'}", *options])
        try:
            script("baselines").main()
        except SystemExit as ended:
            said = capsys.readouterr()
            assert ended.code == 2 and said.out == "" and said.err.count("\n") == 1
            return said.err
        return capsys.readouterr().out

    return describe


def test_an_output_directory_belongs_to_one_configuration_and_run(tmp_path: Path, describe: Any) -> None:
    out, run = tmp_path / "out", tmp_path / "run"
    assert describe() == describe() == ""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert before[out / "names.txt"] == b"text\ncode\nmath\n"
    assert before[out / "stages" / "warmup"] == f"{run / 'warmup' / 'step_000002'}\n".encode()
    refusal = f"megafuser: error: {out} was made with other settings (%s); remove it or give another --out\n"
    assert describe("joint.lr=1e-3") == refusal % "config.joint.lr"
    # what changes no result may be another
    assert describe("data.workers=2", "logging.every_seconds=9", "memory.loss_chunk_mib=64") == ""
    assert describe("--base", "org/base") == refusal % "base"
    write_run(tmp_path / "other", "warmup", 2, 10, "first")
    assert describe(f"run_dir={tmp_path / 'other'}") == refusal % "config.run_dir"
    # trained again, with the same configuration
    write_run(run, "warmup", 2, 10, "again")
    assert describe() == refusal % "warm-up checkpoint"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_is_there_without_its_settings_is_not_taken_for_this_runs(tmp_path: Path, describe: Any) -> None:
    model = tmp_path / "out" / "run" / "weights"
    model.mkdir(parents=True)
    assert f"{tmp_path / 'out'} has a run, but no settings.json" in describe()
    write_run(tmp_path / "run", "joint", 3, 100, "first")
    assert "give another --out" in describe() and model.exists()


def test_after_joint_training_the_fine_tune_is_made_anew(tmp_path: Path, describe: Any) -> None:
    """One for the tokens of the warm-up alone must not stand beside the fused model after both stages."""
    out, run = tmp_path / "out", tmp_path / "run"
    assert describe() == "" and not (out / "stages" / "joint").exists()
    kept = [out / name for name in ("models/linear", "checkpoints/ties", "report-warmup", "specialists")]
    anew = [out / name for name in ("models/finetuned", "checkpoints/finetuned", "run", "report-baselines")]
    for path in (*kept, *anew):
        path.mkdir(parents=True)
    write_run(run, "joint", 3, 100, "first")
    assert describe() == f"{run} has a joint checkpoint now: fine-tuning anew, for the tokens of both stages\n"
    assert all(path.exists() for path in kept) and not any(path.exists() for path in anew)
    assert (out / "stages" / "joint").read_text("utf-8") == f"{run / 'joint' / 'step_000003'}\n"
    for path in anew:
        path.mkdir()
    assert describe() == "" and all(path.exists() for path in anew)
    # and it is this joint checkpoint
    write_run(run, "joint", 3, 100, "again")
    assert "(joint checkpoint); remove it or give another --out" in describe()
    (run / "joint" / "latest").unlink()
    assert f"{run} has none; remove it or give another --out" in describe()


def test_the_fine_tunes_tokens_are_those_up_to_each_checkpoint(tmp_path: Path) -> None:
    """A stage may go on after the checkpoint that the table is about."""
    write_run(tmp_path, "warmup", 2, 10, "")
    write_run(tmp_path, "joint", 3, 100, "")
    module = script("finetune")
    assert module.tokens_of_stage(tmp_path / "warmup" / "step_000002") == 20
    assert module.tokens_of_stage(tmp_path / "joint" / "step_000003") == 300
    assert module.tokens_of_stage(tmp_path / "joint" / "step_000001") == 100


def test_an_option_that_there_is_not_is_no_override() -> None:
    for argument in ("--nope=1", "--nope"):
        command = ["bash", str(ROOT / "examples/baselines/run.sh"), argument]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("megafuser: error: unknown argument --nope; see")


def test_the_configuration_of_the_baselines_is_one(tmp_path: Path) -> None:
    """Whatever the run's own says of its specialists, of longer training and of what watches it."""
    overrides = [
        "warmup.lr_warmup_steps=2",
        "joint.groups={text: {lr: 1e-6}}",
        "joint.frozen=[code]",
        "logging.wandb={project: mine}",
        "profile={start: 1, steps: 2}",
    ]
    config = load_config(ROOT / "examples/quickstart/config.yaml", overrides)
    (tmp_path / "models" / "finetuned").mkdir(parents=True)
    (tmp_path / "models" / "finetuned" / "finetuned.json").write_text(json.dumps({"specialist": "math"}), "utf-8")
    script("baselines").write_config(config, tmp_path)
    made = load_config(tmp_path / "config.yaml")
    assert [own.name for own in made.specialists][-1] == "finetuned" and made.warmup.steps == 1
    assert (made.logging.wandb, made.profile) == (None, None)


def test_paths_are_those_of_where_an_example_is_started() -> None:
    given = ["--out", "a b", "--into=c", "--fast", "--out=/d", "--into", "/e", "--jobs", "f"]
    command = 'source examples/shared/arguments.sh; paths_from "/s t" "$@"; printf "%s\\n" "${arguments[@]}"'
    done = subprocess.run(["bash", "-c", command, "bash", *given], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = ["--out", "/s t/a b", "--into=/s t/c", "--fast", "--out=/d", "--into", "/e", "--jobs", "f"]
    assert done.stdout.splitlines() == wanted
