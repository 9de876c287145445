"""The command `megafuser reshard`: a checkpoint that loads at its own layout only becomes one that loads at any.

What the two forms are is `training.optimizer_state_layout`.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from megafuser.checkpoint.background import BackgroundSave
from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import Manifest, read_manifest
from megafuser.checkpoint.read_lock import reading
from megafuser.checkpoint.snapshot import take_snapshot
from megafuser.checkpoint.specialist_sources import sources_from_checkpoint
from megafuser.config.run_directory import CONFIG, MANIFEST, WEIGHTS, checkpoint_config, resolve_checkpoint
from megafuser.errors import NotSavedError, UserError
from megafuser.runtime.atomic import check_can_be_written
from megafuser.runtime.distributed import distributed, is_rank_zero, rank_zero_leaves_last
from megafuser.runtime.output_checks import Mark, check_output
from megafuser.runtime.world import detect_world
from megafuser.training.checkpoint_contents import Description, load_training_state, training_state
from megafuser.training.engine import Engine
from megafuser.training.optimizer_state import private_storages
from megafuser.training.optimizer_state_layout import is_reshardable, refuse_other_layout
from megafuser.training.session import prepare

logger = logging.getLogger(__name__)


def run_reshard(checkpoint: str, out: str, overrides: Sequence[str] = (), *, overwrite: bool = False) -> int:
    """Reads a joint checkpoint at the layout that it was saved at and writes it by parameter; every rank calls it.

    Args:
        checkpoint: as every `--checkpoint` argument.
        out: the directory to write; may be the checkpoint's own with `overwrite`.
        overrides: of the checkpoint's configuration, such as `device=cpu`.
        overwrite: replace an existing `out`, when the new one is complete.

    Raises:
        UserError: the checkpoint needs no converting, is damaged, or was saved at another layout; `out` exists and is
            not to be replaced, or is no checkpoint of joint training.
        NotSavedError: the disk is full or fails.
    """
    directory = resolve_checkpoint(checkpoint)
    manifest = read_manifest(directory)
    if is_reshardable(manifest):
        raise UserError(f"{directory} loads at any layout already; use it as it is")
    check_output(Path(out), {}, overwrite, Mark(MANIFEST, "kind", "joint"))
    check_can_be_written(Path(out), "--out", replaced=True)
    config = checkpoint_config(directory, overrides)
    # The buckets are the checkpoint's, whatever number of data-parallel ranks there is here. They do not depend on
    # overlap_param_gather, and weights that are gathered later would be saved as they were.
    bucket_size = manifest.run["optimizer_layout"]["bucket_size"]
    parallel = dataclasses.replace(
        config.parallel, overlap_param_gather=False, overlap_grad_reduce=bucket_size is not None
    )
    config = dataclasses.replace(config, parallel=parallel)
    refuse_other_layout(directory, manifest, config.parallel, detect_world().size, any_buckets=True)
    session = prepare(config, sources_from_checkpoint(directory, manifest), (directory, manifest))
    with distributed(config.parallel, seed=config.seed, device=session.device, world=session.world):
        refuse_damaged([directory])
        engine = Engine(
            session.build_model(trained=config.trained("joint")),
            config.optimizer,
            config.joint,
            domains=len(config.data.domains),
            joint=True,
            parallel=config.parallel,
            bucket_size=bucket_size,
        )
        with reading(directory):
            load_training_state(directory, manifest, engine)
        _write(directory, manifest, engine, Path(out), overwrite)
        if is_rank_zero():
            print(f"{out} loads at any layout")
    return 0


def _write(directory: Path, manifest: Manifest, engine: Engine, out: Path, overwrite: bool) -> None:
    state = training_state(engine, manifest.run["step"], is_loading=False)
    snapshot = take_snapshot(state, copy=False, private=private_storages(engine.optimizer, state["optimizer"]))
    content = manifest.run.copy()
    del content["optimizer_layout"]
    others = [name for name in manifest.files if not name.startswith(f"{WEIGHTS}/") and name != CONFIG]
    description = Description(
        dataclasses.replace(manifest, content=content, files={}),
        (directory / CONFIG).read_text("utf-8"),
        {name: (directory / name).read_bytes() for name in others},
    )
    outcome = BackgroundSave(snapshot, out, description.write, lambda: None, overwrite=overwrite).wait()
    assert outcome is not None
    rank_zero_leaves_last()
    if outcome.is_bug:
        raise RuntimeError(outcome.error)
    if outcome.is_refused:
        raise UserError(outcome.error)
    if outcome.error is not None:
        raise NotSavedError(f"{out} could not be saved ({outcome.error}); make room and run the same command again")
    logger.info("wrote %.2f GB in %.1f s", outcome.nbytes / 1e9, outcome.seconds)
