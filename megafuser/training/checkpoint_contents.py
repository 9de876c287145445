"""What is in a run's checkpoints: written beside and renamed with hashes, and loaded again.

A warm-up checkpoint holds the gate, its optimizer, and references to the specialists; a joint one holds everything.
Both load at any tensor and pipeline size, but for a joint one that was saved by rank. When a stage saves is decided in
`training.loop`; the saving is `training.checkpoint_saver`.
"""

import dataclasses
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor

from megafuser.checkpoint.damage import refuse_damaged, refuse_replaced
from megafuser.checkpoint.index import stored_shapes
from megafuser.checkpoint.loading import load_specialist_weights, load_weights
from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, write_manifest
from megafuser.checkpoint.manifest_content import RunContent
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.config.load import to_yaml
from megafuser.config.run_directory import CONFIG, WEIGHTS
from megafuser.fusion.model import FusedModel
from megafuser.runtime.distributed import all_or_none
from megafuser.runtime.random_state import get_random_state, set_random_state
from megafuser.runtime.versions import library_versions
from megafuser.training.engine import Engine
from megafuser.training.history import History
from megafuser.training.optimizer_state import allocate_state, load_state, set_step_count, sharded_state
from megafuser.training.optimizer_state_layout import is_reshardable, optimizer_layout
from megafuser.training.session import Session

logger = logging.getLogger(__name__)

# [ranks, bytes]: each rank's own; only a world of the same size takes it back.
_RANDOM_STATE = "random_state"


def load_training_state(directory: Path, manifest: Manifest, engine: Engine) -> None:
    """Goes on from a checkpoint of the same stage: weights, optimizer, schedule, random state; every rank calls it.

    Args:
        directory: the checkpoint.
        manifest: its manifest.
        engine: at a layout that `refuse_other_layout` lets pass.
    """
    step, reshardable = manifest.run["step"], is_reshardable(manifest)
    wanted = training_state(engine, step, is_loading=True, reshardable=reshardable)
    stored = all_or_none(lambda: stored_shapes(directory / WEIGHTS)).get(_RANDOM_STATE)
    same_world = stored == wanted[_RANDOM_STATE].global_shape
    if not same_world:
        del wanted[_RANDOM_STATE]
    state = load_weights(wanted, directory / WEIGHTS, exact=same_world)
    for index, chunk in enumerate(engine.chunks):
        chunk.load_sharded(state["model"].get(_chunk_key(index), {}))
    load_state(engine.optimizer, state["optimizer"])
    engine.skipped_steps = manifest.run.get("skipped_steps", 0)
    engine.scheduler.load_state_dict(state["scheduler"])
    if same_world:
        set_random_state(state[_RANDOM_STATE].flatten(), engine.device)


def load_converted(chunks: Sequence[FusedModel], sources: Sequence[SpecialistSource]) -> None:
    """Fills the specialists from their converted checkpoints; every rank calls it.

    Raises:
        UserError: a checkpoint's files are not what its manifest says, or another one has taken its place.
    """
    started = time.monotonic()
    refuse_damaged([source.checkpoint for source in sources])
    for index, source in enumerate(sources):
        load_specialist_weights([chunk.specialists[index] for chunk in chunks], source.checkpoint)
    refuse_replaced(sources)
    logger.info("loaded %d specialists in %.1f s", len(sources), time.monotonic() - started)


def load_run_weights(
    directory: Path, manifest: Manifest, chunks: Sequence[FusedModel], sources: Sequence[SpecialistSource]
) -> None:
    """Fills the whole model as a run's checkpoint has it, without optimizer or schedule; every rank calls it.

    Args:
        directory: the checkpoint.
        manifest: its manifest; of a warm-up checkpoint the specialists come from their converted checkpoints.
        chunks: this rank's pieces, in order.
        sources: the specialists.
    """
    if manifest.kind == "warmup":
        load_converted(chunks, sources)
    wanted = _model_state(chunks, whole=manifest.kind != "warmup")
    # Stages before the last want nothing of a warm-up checkpoint, and megatron-core drops what is empty.
    loaded = load_weights({"model": wanted}, directory / WEIGHTS, exact=False).get("model", {})
    for index, chunk in enumerate(chunks):
        chunk.load_sharded(loaded.get(_chunk_key(index), {}))


def _model_state(chunks: Sequence[FusedModel], *, whole: bool) -> dict[str, Any]:
    """The sharded state of this rank's chunks; they number their layers alike, so each has a mapping of its own."""
    return {
        _chunk_key(index): chunk.sharded_state_dict() if whole else chunk.gate_sharded_state_dict()
        for index, chunk in enumerate(chunks)
    }


def _chunk_key(index: int) -> str:
    return f"chunk_{index}"


def training_state(engine: Engine, step: int, *, is_loading: bool, reshardable: bool = True) -> dict[str, Any]:
    """The sharded state of a stage, to be saved or to be filled; every rank calls it."""
    engine.gather_parameters()
    allocate_state(engine.optimizer)  # also where every step so far was skipped
    model = _model_state(engine.chunks, whole=engine.joint)
    optimizer = sharded_state(engine.optimizer, model, is_loading=is_loading, reshardable=reshardable)
    set_step_count(engine.optimizer, optimizer, step - engine.skipped_steps)
    random_state = get_random_state(engine.device)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": engine.scheduler.state_dict(),
        _RANDOM_STATE: ShardedTensor.from_rank_offsets(
            _RANDOM_STATE, random_state, (0, dist.get_rank(), dist.get_world_size()), prepend_axis_num=1
        ),
    }


@dataclass(frozen=True)
class Description:
    """What stands in a checkpoint beside its weights; made at the step, written when the weights are.

    Attributes:
        manifest: without the files' hashes.
        config: of the run, as YAML.
        files: tokenizers and the like, by path relative to the checkpoint.
    """

    manifest: Manifest
    config: str
    files: Mapping[str, bytes]

    def write(self, directory: Path, known: Mapping[str, str]) -> None:
        """Adds the files, and the manifest last.

        Args:
            directory: the checkpoint.
            known: hashes of the files in it that have been computed already, by relative path.

        Raises:
            OSError: the disk is full or fails.
        """
        (directory / CONFIG).write_text(self.config, encoding="utf-8")
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_manifest(directory, self.manifest, known)


def describe(
    target: Path,
    stage: str,
    step: int,
    engine: Engine,
    session: Session,
    history: History,
    *,
    data: Mapping[str, Mapping[str, str]],
    reshardable: bool,
) -> Description:
    """The description of a stage's checkpoint.

    Args:
        target: where it will be.
        stage: `warmup` or `joint`.
        step: optimizer steps done; also the position in the data.
        engine: what trained.
        session: what it was set up from.
        history: what it has seen.
        data: domain → split → key of the samples.
        reshardable: whether the optimizer's states are by parameter.
    """
    data_parallel = parallel_state.get_data_parallel_world_size()
    content: RunContent = {
        "stage": stage,
        "step": step,
        "cards": {source.name: source.card.to_dict() for source in session.sources},
        "gate": {"hidden_size": session.config.gate.hidden_size, "temperature": session.config.gate.temperature},
        "shared_vocabulary": session.shared_vocabulary,
        "end_id": session.end_id,
        "layout": {
            "tensor": parallel_state.get_tensor_model_parallel_world_size(),
            "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
            "data": data_parallel,
        },
        "data": data,
        "versions": _versions(),
        "references": {source.name: source.reference(target) for source in session.sources},
        "counts": history.counts,
    }
    if history.skipped:
        content["skipped_steps"] = history.skipped
    if history.warmup is not None:
        content["warmup"] = history.warmup
    if history.earlier_joint:
        content["earlier_joint"] = history.earlier_joint
    if history.validation.step is not None:
        content["validation"] = dataclasses.asdict(history.validation)
    if not reshardable:
        content["optimizer_layout"] = optimizer_layout(session.config.parallel, data_parallel)
    tokenizers = {
        f"specialists/{name}/{file}": content_of_file
        for name, files in session.tokenizer_files.items()
        for file, content_of_file in files.items()
        if engine.joint
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION, kind=stage, dtype=session.config.precision.dtype, content=content
    )
    return Description(manifest, to_yaml(session.config), tokenizers)


def _versions() -> dict[str, str]:
    """Of Python and of those libraries that are installed."""
    installed = {package: version for package, version in library_versions().items() if version is not None}
    return {"python": platform.python_version()} | installed
