"""A run's checkpoints: written beside and renamed, hashed, found again, and passed over where damaged.

A warm-up checkpoint holds the gate, its optimizer, and references to the specialists; a joint one holds everything.
Both load at any tensor and pipeline size.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor

from megafuser.checkpoint.atomic import atomic_directory, write_text_atomic
from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, read_manifest, verify_files, write_manifest
from megafuser.checkpoint.torch_dist import load_weights, save_weights, stored_shapes
from megafuser.config.load import to_yaml
from megafuser.config.run_directory import RunDirectory
from megafuser.fusion.model import FusedModel
from megafuser.runtime.distributed import is_rank_zero
from megafuser.runtime.random_state import get_random_state, set_random_state
from megafuser.training.engine import Engine
from megafuser.training.optimizer import allocate_state, load_state
from megafuser.training.session import Session

WEIGHTS = "weights"
# [ranks, bytes]: each rank's own; only a world of the same size takes it back.
_RANDOM_STATE = "random_state"
# The optimizer's states are saved by parameter, so that they load at another tensor and pipeline size too.
_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save_checkpoint(run: RunDirectory, stage: str, step: int, engine: Engine, session: Session) -> Path:
    """Writes a stage's checkpoint and moves `latest` to it; every rank calls it.

    Args:
        run: the run's directory.
        stage: `warmup` or `joint`.
        step: optimizer steps done; also the position in the data.
        engine: what trained.
        session: what it was set up from.

    Returns:
        The checkpoint's directory.
    """
    target = run.step_directory(stage, step)
    state = _training_state(engine, step, is_loading=False)
    with _shared_directory(target) as directory:
        save_weights(state, directory / WEIGHTS)
        dist.barrier()
        if is_rank_zero():
            _describe(directory, target, stage, step, engine, session)
    if is_rank_zero():
        write_text_atomic(run.stage(stage) / "latest", target.name + "\n")
        remove_old_checkpoints(run, stage, session.config.checkpoint.keep)
    dist.barrier()
    return target


def load_training_state(directory: Path, step: int, engine: Engine) -> None:
    """Goes on from a checkpoint of the same stage: weights, optimizer, schedule, random state; every rank calls it."""
    allocate_state(engine.optimizer)
    wanted = _training_state(engine, step, is_loading=True)
    stored = stored_shapes(directory / WEIGHTS).get(_RANDOM_STATE)
    same_world = stored == wanted[_RANDOM_STATE].global_shape
    if not same_world:
        del wanted[_RANDOM_STATE]
    state = load_weights(wanted, directory / WEIGHTS, exact=same_world)
    engine.model.load_sharded(state["model"])
    load_state(engine.optimizer, state["optimizer"])
    engine.scheduler.load_state_dict(state["scheduler"])
    if same_world:
        set_random_state(state[_RANDOM_STATE].flatten(), engine.device)


def load_weights_only(directory: Path, model: FusedModel, kind: str) -> None:
    """Fills the gate (kind `warmup`) or everything (`joint`) from a run's checkpoint; every rank calls it."""
    wanted = model.gate_sharded_state_dict() if kind == "warmup" else model.sharded_state_dict()
    model.load_sharded(load_weights({"model": wanted}, directory / WEIGHTS, exact=False)["model"])


def latest_intact(run: RunDirectory, stage: str) -> Path | None:
    """The stage's newest checkpoint whose files are what its manifest says; every rank calls it.

    A damaged one is renamed to `step_NNNNNN.damaged`, with a warning, and the one before it is taken.
    """
    found: list[Path | None] = [None]
    if is_rank_zero():
        found[0] = _latest_intact(run, stage)
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


def remove_old_checkpoints(run: RunDirectory, stage: str, keep: int) -> None:
    """Keeps the newest `keep` checkpoints of a stage."""
    for old in _steps(run, stage)[keep:]:
        shutil.rmtree(old)


def _latest_intact(run: RunDirectory, stage: str) -> Path | None:
    candidates = _steps(run, stage)
    for index, directory in enumerate(candidates):
        problems = verify_files(directory, read_manifest(directory, stage))
        if not problems:
            return directory
        damaged = directory.with_name(directory.name + ".damaged")
        shutil.rmtree(damaged, ignore_errors=True)
        directory.rename(damaged)
        using = candidates[index + 1] if index + 1 < len(candidates) else "none: the stage starts over"
        print(f"megafuser: warning: damaged checkpoint {directory} ({problems[0]}); using {using}", file=sys.stderr)
    return None


def _steps(run: RunDirectory, stage: str) -> list[Path]:
    """The stage's step directories, newest first."""
    found = run.stage(stage).glob("step_" + "[0-9]" * 6)
    return sorted((path for path in found if path.is_dir()), reverse=True)


@contextmanager
def _shared_directory(target: Path) -> Iterator[Path]:
    """`atomic_directory` for all ranks: rank 0 owns it, the others write into it."""
    path: list[Path | None] = [None]
    if not is_rank_zero():
        dist.broadcast_object_list(path, src=0)
        assert path[0] is not None
        yield path[0]
        return
    with atomic_directory(target, overwrite=True) as directory:
        (directory / WEIGHTS).mkdir()
        path[0] = directory
        dist.broadcast_object_list(path, src=0)
        yield directory


def _training_state(engine: Engine, step: int, *, is_loading: bool) -> dict[str, Any]:
    """The sharded state of a stage, to be saved or to be filled."""
    model = engine.model.sharded_state_dict() if engine.joint else engine.model.gate_sharded_state_dict()
    optimizer = engine.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=_OPTIMIZER_METADATA)
    if not engine.joint:
        _set_common_step(optimizer, step)
    random_state = get_random_state(engine.device)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": engine.scheduler.state_dict(),
        _RANDOM_STATE: ShardedTensor.from_rank_offsets(
            _RANDOM_STATE, random_state, (0, dist.get_rank(), dist.get_world_size()), prepend_axis_num=1
        ),
    }


def _set_common_step(optimizer: dict[str, Any], step: int) -> None:
    """Puts AdamW's step count where rank 0 finds it.

    Megatron-core saves what is common to all ranks from rank 0, and takes the count from that rank's parameters; in
    warm-up rank 0's stage may have none, and the bias correction would start over on resuming.
    """
    adam = optimizer.get("optimizer", optimizer)
    adam["state"]["common_step"] = torch.tensor(float(step))


def _describe(directory: Path, target: Path, stage: str, step: int, engine: Engine, session: Session) -> None:
    """Adds the configuration, the tokenizers of a joint checkpoint, and the manifest."""
    (directory / "config.yaml").write_text(to_yaml(session.config), encoding="utf-8")
    content: dict[str, Any] = {
        "stage": stage,
        "step": step,
        "cards": {source.name: source.card.to_dict() for source in session.sources},
        "gate": {"hidden_size": session.config.gate.hidden_size},
        "shared_vocabulary": session.shared_vocabulary,
        "end_id": session.end_id,
        "layout": {
            "tensor": parallel_state.get_tensor_model_parallel_world_size(),
            "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
            "data": parallel_state.get_data_parallel_world_size(),
        },
        "references": {source.name: source.reference(target) for source in session.sources},
    }
    if engine.joint:
        for name, files in session.tokenizer_files.items():
            (directory / "specialists" / name).mkdir(parents=True)
            for file, content_of_file in files.items():
                (directory / "specialists" / name / file).write_bytes(content_of_file)
    write_manifest(
        directory,
        Manifest(format_version=FORMAT_VERSION, kind=stage, dtype=session.config.precision.dtype, content=content),
    )
