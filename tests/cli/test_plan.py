"""`megafuser plan` as a user runs it: on converted specialists, on Hugging Face directories, and on mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, write_manifest
from megafuser.cli.main import main
from tests.parallel.launch import ROOT
from tests.unit.planning.architectures import EQUAL, ULTRAFUSER_13B, Cards

EXAMPLE = ROOT / "examples" / "ultrafuser-13b" / "config.yaml"
HF_13B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
}


def write_cards(directories: dict[str, Path], cards: Cards) -> None:
    """Converted checkpoints of which only the manifests are there."""
    for name, directory in directories.items():
        directory.mkdir(parents=True)
        source = {"name": name, "repository": None, "revision": None}
        content = {"card": cards[name].to_dict(), "source": source}
        write_manifest(directory, Manifest(FORMAT_VERSION, "specialist", "bf16", content))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the example's configuration and its specialists' manifests."""
    monkeypatch.chdir(tmp_path)
    text = EXAMPLE.read_text()
    (tmp_path / "config.yaml").write_text(text)
    values = yaml.safe_load(text)
    write_cards({item["name"]: Path(item["checkpoint"]) for item in values["specialists"]}, ULTRAFUSER_13B)
    return tmp_path


def plan(*arguments: str) -> int:
    return main(["plan", "--config", "config.yaml", *arguments])


def test_the_papers_recipe_on_sixteen_gpus(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpus", "16", "--json", "plan.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 specialists, 39.05 billion parameters, on 16 h100 of 79.6 GiB")
    assert lines[1].startswith("TP 8 x PP 2 x DP 1, sequence parallel; bf16, fp8 delayed; backend transformer_engine")
    assert sum(line.startswith("pipeline rank") for line in lines) == 4
    # 14 bytes a parameter, three that are kept and one that is being written
    assert "disk: 547 GB a joint checkpoint, 2.2 TB at once with checkpoint.keep=3" in lines
    assert lines[-1].startswith("fits: the fullest rank needs ")
    found = json.loads((here / "plan.json").read_text())
    rates = {"bf16": 989e12, "fp8": 1979e12, "link": 450e9, "network": 50e9}
    assert found["gpu"] == {"name": "h100", "memory_gib": 79.6, **rates}
    assert found["disk"]["joint"]["count"] == 4 and found["disk"]["warmup"]["count"] == 1
    assert found["disk"]["joint"]["at_once"] == 4 * found["disk"]["joint"]["checkpoint"] > 2.18e12
    joint = found["stages"]["joint"]
    for rank in joint["ranks"]:
        states = rank["states"]
        # bf16 weights, float32 gradients, masters and two moments; padding is less than a thousandth
        assert states["weights"] == pytest.approx(2 * states["parameters"], rel=1e-3)
        assert states["gradients"] == pytest.approx(4 * states["parameters"], rel=1e-3)
        assert states["optimizer"] == 12 * states["parameters"]
    warmup = found["stages"]["warmup"]["ranks"]
    assert [rank["states"]["trainable"] for rank in warmup] == [0, 5120 * 512 + 512 + 512 + 1]
    assert warmup[0]["activations"] == 0 and found["advice"] is None and found["does_not_fit"] == []


def test_what_does_not_fit_is_told_with_what_to_type(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpus", "16", "--gpu", "a100-40gb", "precision.fp8=null", "--json", "plan.json") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("does not fit: joint needs ") and "of 39.4 GiB; the nearest that fits: " in last
    overrides = json.loads((here / "plan.json").read_text())["advice"]["text"]
    assert overrides in last
    assert plan("--gpus", "16", "--gpu", "a100-40gb", "precision.fp8=null", *overrides.split()) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("fits: ")


def test_a_check_tells_by_its_exit_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpus", "16", "--check") == 0
    assert plan("--gpus", "16", "--check", "--gpu-memory", "24", "--json", "plan.json") == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("does not fit: joint needs ")
    assert json.loads((here / "plan.json").read_text())["does_not_fit"] == ["joint"]
    assert plan("--gpus", "12", "--check") == 2


def test_only_an_earlier_plan_is_replaced_and_only_when_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpus", "16", "--json", "plan.json") == 0
    first = (here / "plan.json").read_bytes()
    capsys.readouterr()
    assert plan("--gpus", "32", "--json", "plan.json") == 2
    assert capsys.readouterr() == ("", "megafuser: error: --json plan.json exists; give another file or --overwrite\n")
    assert (here / "plan.json").read_bytes() == first
    assert plan("--gpus", "32", "--json", "plan.json", "--overwrite") == 0
    assert json.loads((here / "plan.json").read_text())["gpus"] == 32
    for content in ("{}", "run_dir: runs/mine\n"):
        (here / "mine").write_text(content)
        assert plan("--json", "mine", "--overwrite") == 2
        assert "--json mine holds no plan, so it is not overwritten" in capsys.readouterr().err
        assert (here / "mine").read_text() == content
    (here / "empty").touch()
    assert plan("--json", "empty", "--overwrite") == 0
    assert plan("--json", "/dev/null") == 0


def test_a_full_disk_costs_neither_the_plan_nor_the_earlier_one(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan("--gpus", "16", "--json", "plan.json") == 0
    first = (here / "plan.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device", "plan.json")

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert plan("--gpus", "32", "--json", "plan.json", "--overwrite") == 75
    told = capsys.readouterr()
    assert told.out.splitlines()[-1].startswith("fits: ")
    assert "plan.json cannot be written (No space left on device); make room and run the same command" in told.err
    assert (here / "plan.json").read_bytes() == first
    assert [path.name for path in here.glob(".*")] == []


def test_another_size_of_memory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpus", "16", "--gpu-memory", "24") == 0
    assert "of 24.0 GiB" in capsys.readouterr().out.splitlines()[-1]


def test_before_the_conversion(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpus", "16") == 0
    converted = capsys.readouterr().out
    (here / "hf").mkdir()
    (here / "hf" / "config.json").write_text(json.dumps(HF_13B))
    assert plan("--gpus", "16", "specialists.0.checkpoint=hf") == 0
    found = capsys.readouterr().out.splitlines()
    assert "specialist text: hf is a Hugging Face directory, not converted yet, without a tokenizer to compare" in found
    assert [line for line in found if "not converted" not in line] == converted.splitlines()


def test_a_run_on_a_cpu(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cards({name: here / "small" / name for name in EQUAL}, EQUAL)
    paths = [f"specialists.{index}.checkpoint=small/{name}" for index, name in enumerate(EQUAL)]
    assert plan("device=cpu", "precision.fp8=null", "parallel.tensor=2", *paths) == 0
    out = capsys.readouterr().out
    assert "on 4 CPU ranks" in out and "backend torch" in out and "no time is predicted for a CPU" in out
    assert out.splitlines()[-1].startswith("the fullest rank needs ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["specialists.1.checkpoint=nowhere"], "specialist code: nowhere is not a directory; convert it with tools/"),
        (["--gpus", "12"], "--gpus 12 is not a multiple of 16 (tensor 8 x pipeline 2); try --gpus 16"),
        (["--gpus", "6", "parallel.tensor=3", "precision.fp8=null"], "parallel.tensor: 3 "),
        (["--gpus", "82", "parallel.tensor=1", "parallel.pipeline=41"], "parallel.pipeline: 41 "),
        (["--gpu", "h10O"], "--gpu h10O: unknown; the nearest valid one is 'h100'"),
        (["--gpu-memory", "0"], "--gpu-memory: must be a number above 0"),
        (["--mfu", "1.5"], "--mfu: must be above 0 and at most 1"),
        (["--gpus", "none"], "--gpus: must be a whole number of at least 1"),
        (["--json", "no/such/place.json"], "--json no/such/place.json: No such file or directory"),
        (["--json", "."], "--json .: Is a directory; give another file"),
        (["--json", "x" * 300], "File name too long; give another path"),
        (["memory.recompute=some"], "memory.recompute: must be"),
    ],
)
def test_mistakes(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert plan(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("megafuser: error: ")
    assert says in captured.err and captured.out == ""


def test_neither_torch_nor_megatron_is_loaded(here: Path) -> None:
    code = (
        "import sys; from megafuser.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'megatron', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    options = ["--config", "config.yaml", "--gpu", "a100-40gb", "precision.fp8=null"]
    command = [sys.executable, "-c", code, "plan", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
