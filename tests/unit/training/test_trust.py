"""Nothing is trained on that was not looked at: tokenizers in a checkpoint, converted specialists, losses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megafuser.training.engine import Engine
from tests.unit.training.small_run import STEPS, SmallRun


def spoil_the_configuration(checkpoint: Path) -> None:
    (checkpoint / "config.yaml").write_text("run_dir: [")


def change_a_tokenizer(checkpoint: Path) -> None:
    """It still parses: two tokens have changed places."""
    path = checkpoint / "specialists/code/tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"the"', '"eht"'), encoding="utf-8")
    if path.read_text(encoding="utf-8") == text:
        path.write_text(text + " ", encoding="utf-8")


@pytest.mark.parametrize("damage", [spoil_the_configuration, change_a_tokenizer])
def test_a_checkpoint_damaged_outside_its_weights_is_not_gone_on_from(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    copy = finished.copy(tmp_path / "run")
    good = (copy.step("joint", 2) / "specialists/code/tokenizer.json").read_bytes()
    damage(copy.step("joint", 4))
    assert copy.stage("joint", f"joint.steps={STEPS + 1}") == 0
    assert f"damaged checkpoint {copy.step('joint', 4)}; using {copy.step('joint', 2)}" in capsys.readouterr().err
    assert (copy.step("joint", STEPS + 1) / "specialists/code/tokenizer.json").read_bytes() == good


def test_a_damaged_specialist_is_refused(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(case / "mcore", tmp_path / "mcore")
    path = max((tmp_path / "mcore/code/weights").glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run = SmallRun(case / "config.yaml", tmp_path / "run")
    assert run.stage("warmup", f"specialists.1.checkpoint={tmp_path / 'mcore/code'}") == 2
    assert "damaged checkpoint" in capsys.readouterr().err
    assert sorted(path.name for path in run.directory.iterdir()) == ["data", "run.lock"], "what was tokenized, no more"


def test_specialists_may_move(case: Path, finished: SmallRun, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "run")
    shutil.copytree(case / "mcore", tmp_path / "elsewhere")
    copy.go_back("warmup", 2)
    assert copy.stage("warmup", f"specialists.0.checkpoint={tmp_path / 'elsewhere/text'}") == 0
    assert copy.lines("warmup") == finished.lines("warmup")


def test_losses_that_are_no_number_end_the_run_before_a_checkpoint(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gradients = Engine.compute_gradients
    monkeypatch.setattr(Engine, "compute_gradients", lambda self, rows: gradients(self, rows) * torch.nan)
    run = SmallRun(case / "config.yaml", tmp_path / "run")
    assert run.stage("warmup", "faults.skipped_steps=2", "checkpoint.interval=5") == 1
    assert "error: warmup step 2: 2 steps in a row were skipped, the last since the loss" in capsys.readouterr().err
    assert not (run.directory / "warmup").exists()
    assert [line["skipped"] for line in run.lines("warmup") if line["split"] == "train"] == [1, 1]


def test_a_run_directory_that_cannot_be_made(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert SmallRun(case / "config.yaml", tmp_path / "file/run").stage("warmup") == 2
    assert "run_dir: " in capsys.readouterr().err
