"""What is in a run's checkpoints, and what is not: nothing that runs when it is read."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megafuser.checkpoint.index import read_index, stored_shapes
from megafuser.checkpoint.manifest import read_manifest, verify_files
from megafuser.errors import UserError
from megafuser.training import checkpoint_contents
from tests.fused_case import SPECIALISTS
from tests.unit.training.small_run import SmallRun, different, model_of, parameters_of

STAGES = ("warmup", "joint")


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_is_as_its_manifest_says(finished: SmallRun, stage: str) -> None:
    checkpoint = finished.step(stage, 4)
    manifest = read_manifest(checkpoint, stage)
    assert verify_files(checkpoint, manifest) == []
    assert manifest.content["step"] == 4
    assert manifest.content["shared_vocabulary"] == 320
    assert manifest.content["end_id"] == 2
    assert manifest.content["layout"] == {"tensor": 1, "pipeline": 1, "data": 1}
    assert list(manifest.content["cards"]) == list(SPECIALISTS)
    assert manifest.content["cards"]["code"]["rotary_base"] == 1e6


@pytest.mark.parametrize("stage", STAGES)
def test_reading_a_checkpoint_runs_nothing(finished: SmallRun, stage: str) -> None:
    """The index names the format's classes alone; the small common state is what PyTorch's safe unpickler takes."""
    weights = finished.step(stage, 4) / "weights"
    read_index(weights)
    common = torch.load(weights / "common.pt", weights_only=True)
    assert set(common) <= {"optimizer", "scheduler"}
    names = {path.name for path in weights.iterdir()}
    assert names == {".metadata", "metadata.json", "common.pt", "__0_0.distcp"}
    # tensors only: an object among them would be a pickle
    index = (weights / ".metadata").read_bytes()
    assert b"BytesStorageMetadata" not in index


def test_keys_of_a_warmup_checkpoint(finished: SmallRun) -> None:
    keys = set(stored_shapes(finished.step("warmup", 4) / "weights"))
    gate = {"gate.fc1.weight", "gate.fc1.bias", "gate.fc2.weight", "gate.fc2.bias"}
    assert gate <= keys
    assert not any("specialists" in key for key in keys)


def test_a_joint_checkpoint_brings_the_tokenizers_along(finished: SmallRun, case: Path) -> None:
    for name in SPECIALISTS:
        source, kept = case / "mcore" / name / "huggingface", finished.step("joint", 4) / "specialists" / name
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
            path.name: path.read_bytes() for path in source.iterdir()
        }


def test_warmup_weights_are_the_specialists_own_and_the_gates(finished: SmallRun) -> None:
    with finished.session() as session:
        fresh = parameters_of(model_of(session))
        trained = parameters_of(model_of(session, finished.step("warmup", 4)))
        assert {name.split(".")[0] for name in different(fresh, trained)} == {"gate"}
        joint = parameters_of(model_of(session, finished.step("joint", 4)))
        assert len(different(fresh, joint)) == len(fresh)


def test_a_specialist_that_is_replaced_while_it_is_loaded_is_told(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversion replaces a whole directory at once; the run would name weights that it does not have."""
    shutil.copytree(case / "mcore", tmp_path / "mcore")
    names = ("text", "code", "math")
    places = [f"specialists.{index}.checkpoint={tmp_path / 'mcore' / name}" for index, name in enumerate(names)]
    run = SmallRun(case / "config.yaml", tmp_path / "run", tuple(places))
    load = checkpoint_contents.load_specialist_weights

    def replacing(models: Any, directory: Path) -> None:
        load(models, directory)
        if directory.name == "code":
            shutil.rmtree(directory)
            shutil.copytree(tmp_path / "mcore" / "math", directory)

    monkeypatch.setattr(checkpoint_contents, "load_specialist_weights", replacing)
    with run.session() as session, pytest.raises(UserError, match=r"specialist code: .*/code was replaced while it"):
        model_of(session)


def test_checkpoints_carry_the_configuration_as_resolved(finished: SmallRun) -> None:
    for stage in STAGES:
        text = (finished.step(stage, 4) / "config.yaml").read_text()
        assert f"run_dir: {finished.directory}\n" in text and "weight_decay: 0.1" in text
