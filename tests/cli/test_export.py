"""`tools/convert_mcore_to_hf.py` as a user calls it: one specialist back, or one line that says why not."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.tools import TOOLS, refusal, run_program, run_tool, tree

IMPORT, EXPORT = "convert_hf_to_mcore", "convert_mcore_to_hf"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def case(both_stages: Path) -> Path:
    """`hf/` and `mcore/` with three specialists, and `run/` with a checkpoint of each stage; all may move together."""
    return both_stages


@pytest.fixture
def here(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the case as the working directory, to be damaged, while the original one is away."""
    copy = shutil.copytree(case, tmp_path / "case")
    monkeypatch.chdir(copy)
    away = case.rename(case.with_name("away"))
    yield copy
    away.rename(case)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_as_a_program_from_another_directory(case: Path, tmp_path: Path) -> None:
    path = TOOLS / f"{EXPORT}.py"
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env python3\n")
    shutil.copytree(case / "mcore" / "code", tmp_path / "code")
    done = run_program(EXPORT, "--checkpoint", "code", "--out", "out", "--verify", "logits", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    verified, logits, last = done.stdout.splitlines()
    assert verified == "weights: all 21 tensors are equal bit by bit"
    assert logits.startswith("logits: the largest difference")
    assert last == "out: ready for transformers"
    assert done.stderr == ""
    assert equal(weights(tmp_path / "out"), weights(case / "hf" / "code"))


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(EXPORT, "--help") == 0
    text = capsys.readouterr().out
    words = ("--checkpoint", "--out", "--specialist", "--dtype", "--verify", "--overwrite", "examples:", "exit codes:")
    for word in (*words, "trust_remote_code=True"):
        assert word in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("name", ["text", "code", "math"])
def test_every_file_comes_back(case: Path, tmp_path: Path, name: str) -> None:
    hf = case / "hf" / name
    assert run_tool(EXPORT, "--checkpoint", case / "mcore" / name, "--out", tmp_path / "out") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"} == {
        path.name: path.read_bytes() for path in hf.iterdir() if path.suffix != ".safetensors"
    }
    assert equal(weights(tmp_path / "out"), weights(hf))


@pytest.mark.parametrize("checkpoint", ["run/warmup/step_000002", "run/warmup"])
def test_a_specialist_of_a_warm_up_is_the_one_that_was_converted(here: Path, checkpoint: str) -> None:
    assert run_tool(EXPORT, "--checkpoint", checkpoint, "--specialist", "math", "--out", "out") == 0
    assert equal(weights(Path("out")), weights(Path("hf/math")))


@pytest.mark.parametrize("checkpoint", ["run", "run/joint", "run/joint/step_000002"])
def test_a_trained_specialist_needs_nothing_beside_its_checkpoint(here: Path, checkpoint: str) -> None:
    shutil.rmtree("mcore")
    arguments = ("--checkpoint", checkpoint, "--specialist", "code", "--out", "out", "--verify", "logits")
    assert run_tool(EXPORT, *arguments) == 0
    trained, original = weights(Path("out")), weights(Path("hf/code"))
    assert {key: value.shape for key, value in trained.items()} == {k: v.shape for k, v in original.items()}
    assert not any(torch.equal(trained[key], original[key]) for key in trained if "norm" not in key)
    # AdamW's first steps are about as long as the learning rate, whatever the gradient
    furthest = max(float((trained[key].float() - original[key].float()).abs().max()) for key in trained)
    assert 0 < furthest < 0.02
    for path in Path("hf/code").iterdir():
        if path.name != "model.safetensors":
            assert (Path("out") / path.name).read_bytes() == path.read_bytes(), path.name
    AutoModelForCausalLM.from_pretrained("out")


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_the_fused_model_brings_ordinary_models_along(case: Path, tmp_path: Path, stage: str) -> None:
    assert run_tool(EXPORT, "--checkpoint", case / "run" / stage, "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out" / "specialists").iterdir()) == ["code", "math", "text"]
    for name in ("text", "code", "math"):
        hf, exported = case / "hf" / name, tmp_path / "out" / "specialists" / name
        assert equal(weights(exported), weights(hf)) == (stage == "warmup")
        for path in hf.iterdir():
            if path.suffix != ".safetensors":
                assert (exported / path.name).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(("dtype", "wanted"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_dtype(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, wanted: torch.dtype) -> None:
    arguments = ("--checkpoint", case / "mcore" / "text", "--out", tmp_path / "out", "--dtype", dtype)
    assert run_tool(EXPORT, *arguments, "--verify", "logits") == 0
    assert f"equal bit by bit, after rounding to {dtype}" in capsys.readouterr().out
    original = {key: value.to(wanted) for key, value in weights(case / "hf" / "text").items()}
    assert equal(weights(tmp_path / "out"), original)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == str(wanted).removeprefix("torch.")


def test_existing_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--checkpoint", "mcore/text", "--out", "out", "--verify", "none")
    assert run_tool(EXPORT, *arguments) == 0
    before = tree(here)
    capsys.readouterr()
    assert "pass --overwrite" in refusal(capsys, EXPORT, *arguments)
    assert tree(here) == before
    assert run_tool(EXPORT, *arguments, "--overwrite", "--dtype", "bf16") == 0
    assert weights(Path("out"))["model.norm.weight"].dtype == torch.bfloat16


def edit_manifest(**values: object) -> Damage:
    """Changes a manifest that does not know its own hash, as older ones."""

    def damage(root: Path) -> None:
        path = root / "mcore" / "text" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hash": None} | values))

    return damage


def flip(name: str) -> Damage:
    """Changes a bit in the middle of a file."""

    def damage(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[len(content) // 2] ^= 4
        (root / name).write_bytes(content)

    return damage


def remove(name: str) -> Damage:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def nothing(root: Path) -> None:
    (root / "file").write_text("mine")


TEXT = ("--checkpoint", "mcore/text", "--out", "deep/out")
CODE_OF = ("--specialist", "code", "--out", "deep/out", "--checkpoint")
BAD_INPUT: dict[str, tuple[Damage, tuple[str, ...], str]] = {
    "no arguments": (nothing, (), "the following arguments are required: --checkpoint, --out"),
    "no such dtype": (nothing, (*TEXT, "--dtype", "int8"), "invalid choice: 'int8'"),
    "unknown option": (nothing, (*TEXT, "--hf", "x"), "unrecognized arguments: --hf x"),
    "no such directory": (nothing, ("--checkpoint", "nowhere", "--out", "deep/out"), "nowhere: no such directory"),
    "a file": (nothing, ("--checkpoint", "file", "--out", "deep/out"), "no checkpoint at file"),
    "no checkpoint": (nothing, ("--checkpoint", "data", "--out", "deep/out"), "no checkpoint at data"),
    "Hugging Face's": (nothing, ("--checkpoint", "hf/text", "--out", "deep/out"), "no checkpoint at hf/text"),
    "output in place": (nothing, (*TEXT[:3], "mcore/text", "--overwrite"), "contain one another"),
    "output inside": (nothing, (*TEXT[:3], "mcore/text/hf"), "contain one another"),
    "output around": (nothing, (*TEXT[:3], "mcore", "--overwrite"), "contain one another"),
    "output inside the step": (
        nothing,
        (*CODE_OF, "run", "--out", "run/joint/step_000002/code"),
        "contain one another",
    ),
    "output is a file": (nothing, (*TEXT[:3], "file", "--overwrite"), "exists and is not a directory"),
    "output below a file": (nothing, (*TEXT[:3], "file/out"), "cannot be written ("),
    "output is the original model": (nothing, (*TEXT[:3], "hf/text", "--overwrite"), "is not an earlier output"),
    "output is no model": (nothing, (*TEXT[:3], "data", "--overwrite"), "is not an earlier output"),
    "output is another checkpoint": (nothing, (*TEXT[:3], "mcore/code", "--overwrite"), "is not an earlier output"),
    "no such specialist": (
        nothing,
        ("--checkpoint", "run", "--out", "deep/out", "--specialist", "maths"),
        "--specialist maths: run/joint/step_000002 has the specialists text, code, math",
    ),
    "no such specialist of a warm-up": (
        nothing,
        ("--checkpoint", "run/warmup", "--out", "deep/out", "--specialist", "x"),
        "has the specialists text, code, math",
    ),
    "specialist of a specialist": (nothing, (*TEXT, "--specialist", "text"), "leave --specialist text out"),
    "future version": (edit_manifest(format_version=3), TEXT, "format version 3, but this megafuser reads 2; update"),
    "past version": (edit_manifest(format_version=1), TEXT, "format version 1, but this megafuser reads 2"),
    "unknown kind": (edit_manifest(kind="adapter"), TEXT, "unknown kind 'adapter'"),
    "manifest without a card": (edit_manifest(content={}), TEXT, "no architecture card"),
    "manifest changed": (edit_manifest(dtype="bf16", hash="0" * 32), TEXT, "damaged (it is not what was written)"),
    "manifest cut off": (lambda root: os.truncate(root / "mcore/text/manifest.json", 99), TEXT, "is damaged"),
    "weights damaged": (flip("mcore/text/weights/__0_0.distcp"), TEXT, "(damaged: weights/__0_0.distcp)"),
    "weights missing": (remove("mcore/text/weights/__0_0.distcp"), TEXT, "__0_0.distcp"),
    "index damaged": (flip("mcore/text/weights/.metadata"), TEXT, "(damaged: weights/.metadata)"),
    "index missing": (remove("mcore/text/weights/.metadata"), TEXT, ".metadata"),
    "tokenizer damaged": (flip("mcore/text/huggingface/tokenizer.json"), TEXT, "(damaged: huggingface/tokenizer.json)"),
    "configuration missing": (remove("mcore/text/huggingface/config.json"), TEXT, "huggingface/config.json"),
    "trained weights damaged": (
        lambda root: [flip(str(path.relative_to(root)))(root) for path in root.glob("run/joint/*/weights/*.distcp")],
        (*CODE_OF, "run"),
        "damaged checkpoint run/joint/step_000002 (damaged: weights/",
    ),
    "trained weights damaged, fused": (
        lambda root: [flip(str(path.relative_to(root)))(root) for path in root.glob("run/joint/*/weights/*.distcp")],
        ("--checkpoint", "run", "--out", "deep/out"),
        "damaged checkpoint run/joint/step_000002 (damaged: weights/",
    ),
    "specialist of a warm-up damaged, fused": (
        flip("mcore/math/weights/__0_0.distcp"),
        ("--checkpoint", "run/warmup", "--out", "deep/out"),
        "mcore/math (damaged: weights/__0_0.distcp)",
    ),
    "specialist of a warm-up gone, fused": (
        remove("mcore/code"),
        ("--checkpoint", "run/warmup", "--out", "deep/out"),
        "put it back or convert it again",
    ),
    "output in what a warm-up refers to": (
        nothing,
        ("--checkpoint", "run/warmup", "--out", "mcore/math", "--overwrite"),
        "contain one another",
    ),
    "specialist of a warm-up gone": (
        remove("mcore/code"),
        (*CODE_OF, "run/warmup"),
        "put it back or convert it again",
    ),
    "specialist of a warm-up exchanged": (
        lambda root: [shutil.rmtree(root / "mcore/code"), shutil.copytree(root / "mcore/math", root / "mcore/code")],
        (*CODE_OF, "run/warmup"),
        "is no longer the specialist code that the gate was trained on",
    ),
    "latest step gone": (remove("run/joint/step_000002"), (*CODE_OF, "run/joint"), "which is not a checkpoint"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    damage, arguments, says = BAD_INPUT[name]
    nothing(here)
    damage(here)
    before = tree(here)
    assert says in refusal(capsys, EXPORT, *arguments)
    assert tree(here) == before


def test_damage_that_is_met_while_reading(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without verification nothing reads the files beforehand."""
    (here / "mcore/text/weights/__0_0.distcp").write_bytes(b"")
    before = tree(here)
    line = refusal(capsys, EXPORT, *TEXT, "--verify", "none")
    assert "__0_0.distcp is damaged" in line
    assert tree(here) == before


def test_full_disk_is_noticed_before_writing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 2**20, 2**20))
    before = tree(here)
    assert "make room" in refusal(capsys, EXPORT, *TEXT)
    assert tree(here) == before


def test_bad_input_as_a_program(here: Path) -> None:
    flip("mcore/text/weights/__0_0.distcp")(here)
    before = tree(here)
    done = run_program(EXPORT, *TEXT, directory=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("megafuser: error: damaged checkpoint mcore/text (") and done.stderr.count("\n") == 1
    assert tree(here) == before
