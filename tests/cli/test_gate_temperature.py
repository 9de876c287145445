"""A gate's temperature through a run's whole life: training, validation, report, export; another one is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.checkpoint.manifest import read_manifest
from megafuser.cli.main import main
from tests.cli.tools import run_tool
from tests.fused_case import make_case, write_config

TEMPERATURE = 0.25
SETTINGS = [f"gate.temperature={TEMPERATURE}", "gate.init=random"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`config.yaml`, which says nothing of the temperature, and a run of both stages at another than 1."""
    root = tmp_path_factory.mktemp("temperature")
    values = make_case(root, train=4)
    for stage in ("warmup", "joint"):
        values[stage] = {"steps": 2, "samples_per_domain": 2, "lr": 1e-2 if stage == "warmup" else 1e-3}
    write_config(root / "config.yaml", values)
    for stage in ("warmup", "joint"):
        assert main([stage, "--config", str(root / "config.yaml"), *SETTINGS]) == 0
    return root


@pytest.fixture(scope="module")
def exported(root: Path) -> Path:
    arguments = ("--checkpoint", root / "run", "--out", root / "hf_fused", "--verify", "logits")
    assert run_tool("convert_mcore_to_hf", *arguments) == 0
    return root / "hf_fused"


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_checkpoints_say_it(root: Path, stage: str) -> None:
    assert read_manifest(root / "run" / stage / "step_000002").content["gate"]["temperature"] == TEMPERATURE


def test_the_report_is_at_the_checkpoints_temperature(root: Path) -> None:
    """The same samples, weights and losses as in the last validation of the stage."""
    arguments = [
        "--config",
        str(root / "config.yaml"),
        "--checkpoint",
        str(root / "run"),
        "--out",
        str(root / "report"),
    ]
    assert main(["report", *arguments]) == 0
    overall = json.loads((root / "report" / "report.json").read_text())
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if (line["stage"], line["split"], line["step"]) == ("joint", "valid", 2)]
    assert overall["overall"]["cross_entropy"]["fused"] == pytest.approx(last["loss"], rel=1e-6)
    for domain, fields in overall["domains"].items():
        for specialist, weight in fields["gate"].items():
            assert weight == pytest.approx(last[f"gate/{domain}/{specialist}"], rel=1e-5)


@torch.no_grad()
def test_the_export_weighs_at_that_temperature(root: Path, exported: Path, tmp_path: Path) -> None:
    """Scores over a temperature are the scores of a last layer that was divided by it."""
    assert json.loads((exported / "config.json").read_text())["gate_temperature"] == TEMPERATURE
    ids = torch.randint(3, 300, (1, 24), generator=torch.Generator().manual_seed(0))
    found = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)(input_ids=ids)

    gate = load_file(exported / "gate.safetensors")
    divided = {key: value / TEMPERATURE if key.startswith("fc2") else value for key, value in gate.items()}
    twin = tmp_path / "twin"
    twin.mkdir()
    for path in exported.iterdir():
        if path.name not in ("gate.safetensors", "config.json"):
            (twin / path.name).symlink_to(path)
    config = json.loads((exported / "config.json").read_text())
    del config["gate_temperature"]
    (twin / "config.json").write_text(json.dumps(config))
    save_file(gate, twin / "gate.safetensors", metadata={"format": "pt"})
    undivided = AutoModelForCausalLM.from_pretrained(twin, trust_remote_code=True)(input_ids=ids)
    save_file(divided, twin / "gate.safetensors", metadata={"format": "pt"})
    expected = AutoModelForCausalLM.from_pretrained(twin, trust_remote_code=True)(input_ids=ids)
    torch.testing.assert_close(found.gate, expected.gate, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert (found.gate - undivided.gate).abs().max() > 1e-3, "the temperature makes a difference here"


def test_a_completions_gate_is_at_that_temperature(root: Path, exported: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "What is the sum of three and four?"}\n')
    command = ["generate", "--checkpoint", str(root / "run"), "--raw", "--file", str(file), "--out", str(out)]
    assert main([*command, "--show-gate", "--max-new-tokens", "1"]) == 0
    (weights,) = json.loads(out.read_text())["gate"]["weights"]
    ids = AutoTokenizer.from_pretrained(exported)("What is the sum of three and four?", return_tensors="pt").input_ids
    expected = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)(input_ids=ids).gate[0, -1]
    assert weights == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_exports_verification_is_at_that_temperature(exported: Path) -> None:
    """It was verified when it was made."""
    assert f"softmax temperature {TEMPERATURE}" in (exported / "README.md").read_text()


def test_another_one_is_refused_on_going_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["warmup.steps=3", "gate.init=random", "gate.temperature=0.5"]
    assert main(["warmup", "--config", str(root / "config.yaml"), *more]) == 2
    assert "gate.temperature: 0.25 → 0.5" in capsys.readouterr().err


def test_another_one_is_refused_at_the_start_of_joint_training(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"run_dir={tmp_path / 'run'}", f"joint.init_from={root / 'run' / 'warmup'}", "gate.temperature=2"]
    assert main(["joint", "--config", str(root / "config.yaml"), *more]) == 2
    error = capsys.readouterr().err
    assert "gate.temperature: 2.0, but the gate of" in error and "set gate.temperature=0.25" in error
    assert not (tmp_path / "run").exists()
