"""Room for checkpoints, compared with what real ones take."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from megafuser.checkpoint.specialist_sources import SpecialistSource, sources_from_config
from megafuser.cli.main import main
from megafuser.config.load import load_config
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.planning.disk import disk_space
from megafuser.preflight.disk import check_room
from tests.fused_case import make_case, write_config

Usage = namedtuple("Usage", "total used free")
BESIDES = 64 << 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with both stages done."""
    root = tmp_path_factory.mktemp("disk")
    # wide enough for weights to outweigh what stands beside them
    values = make_case(root, train=6, valid=1, hidden_size=128, intermediate_size=512)
    values |= {"device": "cpu", "gate": {"hidden_size": 512}}
    for stage in ("warmup", "joint"):
        values[stage] = {"steps": 1, "samples_per_domain": 1, "lr": 1e-3}
    path = write_config(root / "config.yaml", values)
    for stage in ("warmup", "joint"):
        assert main([stage, "--config", str(path)]) == 0
    return load_config(path)


def checkpoint_bytes(config: RunConfig, stage: str, sources: list[SpecialistSource]) -> int:
    return disk_space(config, stage, {source.name: source.card for source in sources}).checkpoint


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 50, 0, free))


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_checkpoint_is_as_large_as_it_is_taken_for(config: RunConfig, stage: str) -> None:
    """Its tensors; it is never larger, and not much smaller."""
    weights = Path(config.run_dir) / stage / "step_000001" / "weights"
    real = sum(path.stat().st_size for path in weights.rglob("*.distcp"))
    counted = checkpoint_bytes(config, stage, sources_from_config(config)) - BESIDES
    assert 0.7 * counted < real < counted + BESIDES


@pytest.mark.parametrize(
    ("more", "count"), [([], 4), (["checkpoint.keep_best=true", "evaluation.interval=10"], 5)], ids=["newest", "best"]
)
def test_refused_where_one_byte_is_missing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], count: int
) -> None:
    """Three are kept, perhaps a best one beside them, and one is written.

    A run directory that does not exist yet is measured where it will be.
    """
    arguments = [f"run_dir={tmp_path / 'new' / 'run'}", "joint.steps=100", "checkpoint.interval=10", *more]
    config = load_config(Path(config.run_dir).parent / "config.yaml", arguments)
    sources = sources_from_config(config)
    needed = count * checkpoint_bytes(config, "joint", sources)
    room(monkeypatch, needed)
    check_room(config, "joint", sources)
    room(monkeypatch, needed - 1)
    with pytest.raises(UserError, match=rf"{tmp_path} has .* free, but the checkpoints of joint need .*\({count} of"):
        check_room(config, "joint", sources)


def test_the_best_one_needs_room_beside_the_newest(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(config.run_dir).parent / "config.yaml"
    run = f"run_dir={path.parent / 'new'}"
    longer = load_config(path, [run, "joint.steps=100", "checkpoint.interval=10", "checkpoint.keep_best=true"])
    sources = sources_from_config(longer)
    room(monkeypatch, 5 * checkpoint_bytes(longer, "joint", sources) - 1)
    with pytest.raises(UserError, match=r"\(5 of"):
        check_room(longer, "joint", sources)


def test_a_stage_that_was_stopped_between_two_saves_has_one_more_to_write(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(config.run_dir).parent / "config.yaml"
    run = load_config(path, [f"run_dir={tmp_path}", "joint.steps=5000", "checkpoint.interval=5000"])
    (tmp_path / "joint" / "step_003000").mkdir(parents=True)
    sources = sources_from_config(run)
    room(monkeypatch, checkpoint_bytes(run, "joint", sources))
    check_room(run, "joint", sources)
    room(monkeypatch, checkpoint_bytes(run, "joint", sources) - 1)
    with pytest.raises(UserError, match=r"checkpoints of joint need .* more \(2 of"):
        check_room(run, "joint", sources)


def test_what_is_there_already_needs_no_room(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's one checkpoint counts; and no more are needed than there are saves."""
    path = Path(config.run_dir).parent / "config.yaml"
    longer = load_config(path, ["joint.steps=3", "checkpoint.interval=1"])
    sources = sources_from_config(longer)
    room(monkeypatch, 2 * checkpoint_bytes(longer, "joint", sources))
    check_room(longer, "joint", sources)
    room(monkeypatch, 2 * checkpoint_bytes(longer, "joint", sources) - 1)
    with pytest.raises(UserError, match=r"\(3 of"):
        check_room(longer, "joint", sources)
    room(monkeypatch, 0)
    check_room(config, "joint", sources)


@pytest.mark.parametrize(("samples", "count"), [(4, 5), (2, 6)])
def test_the_best_of_other_samples_stays_beside_the_best(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, samples: int, count: int
) -> None:
    """At the very start that changes how many are validated, too."""
    path = Path(config.run_dir).parent / "config.yaml"
    more = ["joint.steps=100", "checkpoint.interval=10", "evaluation.interval=10", "checkpoint.keep_best=true"]
    longer = load_config(path, [*more, f"evaluation.samples_per_domain={samples}"])
    best = Path(config.run_dir) / "joint" / "step_000001"
    monkeypatch.setattr("megafuser.preflight.disk.best_checkpoints", lambda *_: [best])
    room(monkeypatch, 0)
    with pytest.raises(UserError, match=rf"\({count} of"):
        check_room(longer, "joint", sources_from_config(longer))
