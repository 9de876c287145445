"""`megafuser report`: from a checkpoint to `report.json`, `report.html` and a table on standard output.

Measuring is `report.measure`; the page is `report.html`.
"""

import dataclasses
import json
import logging
from pathlib import Path

import torch.distributed as dist

from megafuser import __version__
from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import Manifest
from megafuser.checkpoint.read_lock import reading
from megafuser.checkpoint.specialist_sources import read_run_checkpoint, sources_from_checkpoint
from megafuser.config.load import other_templates_than
from megafuser.config.run_directory import CONFIG, RunDirectory
from megafuser.config.schema import RunConfig
from megafuser.errors import NotSavedError, UserError
from megafuser.inference.spread import Layout, spread
from megafuser.report.curves import read_curves
from megafuser.report.html import render
from megafuser.report.measure import measure
from megafuser.report.results import Report, to_table, to_text
from megafuser.runtime.atomic import atomic_directory, check_can_be_written, saving, write_text_atomic
from megafuser.runtime.distributed import distributed, is_rank_zero
from megafuser.runtime.world import detect_world
from megafuser.training.checkpoint_contents import load_run_weights
from megafuser.training.session import prepare, reading_config
from megafuser.watching.excerpts import Excerpt

logger = logging.getLogger(__name__)


def run_report(
    config: RunConfig,
    checkpoint: str,
    out: str,
    max_samples: int | None,
    overwrite: bool,
    training: bool = False,
    *,
    layout: Layout | None = None,
    other_templates: bool = True,
) -> int:
    """Measures a checkpoint on the configuration's validation data; every rank calls it.

    Specialists and the gate's size are the checkpoint's; templates, data, layout and
    `dtype` the configuration's. FP8 is training's alone.

    Args:
        config: the run's configuration.
        checkpoint: a step's, a stage's or a run's directory.
        out: directory for the report.
        max_samples: takes the first so many samples of each domain; None: all.
        overwrite: replaces a report that is there.
        training: also draws the run's learning rates and gradient norms.
        layout: how the model is spread over the processes; None: as the configuration says.
        other_templates: whether the configuration may have other templates than the checkpoint was trained with; that
            is told then.

    Returns:
        The exit code, 0.

    Raises:
        UserError: something that the user can mend; nothing is written then.
        NotSavedError: the disk is full or fails; what was found has been printed.
    """
    _refuse_existing(Path(out), overwrite)
    directory, manifest = read_run_checkpoint(checkpoint)
    _check_names(config, manifest, directory)
    sources = sources_from_checkpoint(directory, manifest)
    different = other_templates_than(directory / CONFIG, config)
    if different and not other_templates:
        raise UserError(f"{different[0]}; leave the override out, or give --config too")
    config = reading_config(config, manifest)
    if layout is not None:
        cards = {source.name: source.card for source in sources}
        config = dataclasses.replace(config, parallel=spread(config, cards, detect_world(), layout, copies=True))
    session = prepare(config, sources, (directory, manifest))
    with (
        reading(directory),
        distributed(config.parallel, seed=config.seed, device=session.device, world=session.world),
    ):
        (domains,) = session.load_data("valid")
        if is_rank_zero():
            for told in different:
                logger.warning("%s", told)
        refuse_damaged([directory])
        chunks = session.build_model()
        load_run_weights(directory, manifest, chunks, sources)
        found = measure(session, chunks, domains, max_samples)
        try:
            if is_rank_zero():
                report = Report(
                    checkpoint=str(directory),
                    stage=manifest.kind,
                    step=manifest.run["step"],
                    shared_vocabulary=session.shared_vocabulary,
                    max_samples=max_samples,
                    version=__version__,
                    domains=found.scores,
                    overall=found.overall,
                    analysis=found.analysis,
                )
                files = _files(report, found.excerpts, directory, training)
                _write_and_say(report, files, Path(out), overwrite)
        finally:
            dist.barrier()  # the others must not wait for a rank 0 that could not write
    return 0


def _refuse_existing(out: Path, overwrite: bool) -> None:
    """Looks before anything is loaded; writing looks again."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is not a directory; choose another one")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} exists; choose another directory or give --overwrite")
    check_can_be_written(out, "--out")


def _check_names(config: RunConfig, manifest: Manifest, directory: Path) -> None:
    own = [specialist.name for specialist in config.specialists]
    theirs = list(manifest.run["cards"])
    if own != theirs:
        raise UserError(
            f"{directory} is a checkpoint of the specialists {', '.join(theirs)}, but the configuration has "
            f"{', '.join(own)}; use the run's own configuration"
        )


def _files(report: Report, excerpts: list[Excerpt], directory: Path, training: bool) -> dict[str, str]:
    metrics = RunDirectory(directory.resolve().parent.parent).metrics_file
    curves = read_curves(metrics)
    if training and curves is None:
        logger.warning("no training curves: there is no %s that can be read", metrics)
    return {
        "report.html": render(report, excerpts, curves, training),
        # Last: where both are replaced, whoever finds the new numbers finds their page too.
        "report.json": json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n",
    }


def _write_and_say(report: Report, files: dict[str, str], out: Path, overwrite: bool) -> None:
    """Writes the report, and says its numbers also where it cannot be written: they took the time."""
    problem: NotSavedError | UserError | None = None
    try:
        with saving(out, is_kept=False):
            _write(files, out, overwrite)
    except (NotSavedError, UserError) as error:
        problem = error
    print(f"{report.stage} step {report.step}, cross-entropy in nats per response token (*: lowest)")
    print(to_table(report))
    if problem is None:
        print(f"report: {out / 'report.html'}")
    print(to_text(report))
    if problem is not None:
        raise problem


def _write(files: dict[str, str], out: Path, overwrite: bool) -> None:
    if overwrite and out.is_dir():
        # Only the two files are replaced: the directory may hold more than a report.
        for name, text in files.items():
            write_text_atomic(out / name, text)
        return
    with atomic_directory(out) as fresh:
        for name, text in files.items():
            (fresh / name).write_text(text, encoding="utf-8")
