"""Manifests: every damaged, missing or extra file is named, and nothing else is accepted as a checkpoint."""

import dataclasses
import json
from pathlib import Path

import pytest

from megafuser.checkpoint.manifest import (
    FORMAT_VERSION,
    Manifest,
    checkpoint_identity,
    content_hash,
    read_manifest,
    verify_files,
    write_manifest,
)
from megafuser.errors import UserError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    (directory / "weights").mkdir(parents=True)
    (directory / "weights" / "__0_0.distcp").write_bytes(bytes(range(256)) * 40_000)
    (directory / "weights" / "empty").write_bytes(b"")
    (directory / "config.json").write_text("{}")
    write_manifest(directory, Manifest(FORMAT_VERSION, "specialist", "fp32", {"card": {"num_layers": 2}}))
    return directory


def test_round_trip(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint, "specialist")
    assert manifest.content == {"card": {"num_layers": 2}} and manifest.dtype == "fp32"
    assert sorted(manifest.files) == ["config.json", "weights/__0_0.distcp", "weights/empty"]
    assert verify_files(checkpoint, manifest) == []


def test_damaged_missing_and_extra_files_are_named(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    data = bytearray((checkpoint / "weights" / "__0_0.distcp").read_bytes())
    data[5_000_000] ^= 1
    (checkpoint / "weights" / "__0_0.distcp").write_bytes(data)
    assert verify_files(checkpoint, manifest) == ["damaged: weights/__0_0.distcp"]
    (checkpoint / "weights" / "__0_0.distcp").write_bytes(data[:-1])
    (checkpoint / "weights" / "empty").unlink()
    (checkpoint / "more").write_text("x")
    assert verify_files(checkpoint, manifest) == [
        "damaged: weights/__0_0.distcp",
        "missing: weights/empty",
        "extra: more",
    ]


def test_content_hash_follows_weights_and_card_alone(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    assert len(content_hash(manifest)) == 32
    same = dataclasses.replace(manifest, files=manifest.files | {"config.json": "0", "weights/empty": "0"})
    weights = dataclasses.replace(manifest, files=manifest.files | {"weights/__0_0.distcp": "0"})
    card = dataclasses.replace(manifest, content={"card": {"num_layers": 3}})
    assert content_hash(same) == content_hash(manifest)
    assert len({content_hash(m) for m in (manifest, weights, card)}) == 3


def test_the_identity_is_of_the_whole_checkpoint_and_stays_when_it_moves(checkpoint: Path) -> None:
    before = checkpoint_identity(checkpoint)
    moved = checkpoint.rename(checkpoint.parent / "moved")
    assert checkpoint_identity(moved) == before and len(before) == 64
    manifest = read_manifest(moved)
    (moved / "config.json").write_text("other")
    write_manifest(moved, manifest)
    assert checkpoint_identity(moved) != before


def test_a_manifest_that_was_changed_is_refused_and_an_older_one_without_a_hash_is_not(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    values = json.loads(path.read_text())
    values["content"]["card"]["num_layers"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(it is not what was written\)"):
        read_manifest(checkpoint)
    del values["hash"]
    path.write_text(json.dumps(values))
    assert read_manifest(checkpoint, "specialist").content["card"] == {"num_layers": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "update megafuser"),
        ({"format_version": None}, "no format_version"),
        ({"format_version": FORMAT_VERSION - 1}, "use the release that wrote it"),
        ({"kind": "other", "hash": None}, "unknown kind 'other'"),
        ({"kind": "other"}, r"is damaged \(it is not what was written\)"),
        ({"files": ["x"]}, "'files' is missing or damaged"),
        ({"files": {"../escape": "0"}}, "'../escape' is damaged"),
        ({"files": {"/etc/passwd": "0"}}, "damaged"),
        ({"content": None}, "'content'"),
        ({"content": {"cards": {"text": {}, "../../data/math.train": {}}}}, "the entries of 'cards' are damaged"),
        ({"content": {"references": {"..": {}}}}, "the entries of 'references' are damaged"),
        ({"content": {"references": ["text"]}}, "the entries of 'references' are damaged"),
    ],
)
def test_what_is_no_manifest_is_refused(checkpoint: Path, change: dict, message: str) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_manifest(checkpoint)


def test_other_directories_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(UserError, match="is a specialist checkpoint; give a joint checkpoint"):
        read_manifest(checkpoint, "joint")
    (checkpoint / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(checkpoint)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"not a megafuser checkpoint .*convert_hf_to_mcore"):
        read_manifest(checkpoint)
