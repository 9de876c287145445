"""The command `megafuser plan`: reads cards, plans both stages, prints, and writes JSON.

The arithmetic is put together in `planning.plan`; the tables are `planning.table`.
"""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

from megafuser.config.schema import STAGES, RunConfig
from megafuser.errors import DOES_NOT_FIT, UserError, explained_paths, is_full_disk
from megafuser.planning.advice import Advice, advise
from megafuser.planning.cards import read_cards
from megafuser.planning.checkpoint_memory import SaveMemory, checkpoint_gather, save_memory
from megafuser.planning.compute import default_mfu
from megafuser.planning.disk import DiskSpace, disk_space
from megafuser.planning.gpus import GIB, Gpu, find_gpu
from megafuser.planning.plan import StagePlan, Task, plan_stage
from megafuser.planning.table import heading, stage_lines
from megafuser.planning.workload import find_samples
from megafuser.runtime.atomic import check_can_be_written, write_text_atomic
from megafuser.runtime.output_checks import Mark, disk_size


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's options beside the configuration.

    Attributes:
        gpus: number of GPUs; by default as many as hold one model.
        gpu: kind of GPU.
        gpu_memory: GiB of a GPU, in place of the kind's.
        mfu: share of the peak rate that a rank reaches while it computes; by default as the number formats have it.
        sample_tokens: tokens of a sample, in place of what the data files say.
        json_file: where to write everything.
        overwrite: replace a plan that is there.
        check: whether the exit code says that a stage does not fit.
    """

    gpus: int | None
    gpu: str
    gpu_memory: float | None
    mfu: float | None
    sample_tokens: int | None
    json_file: str | None
    overwrite: bool = False
    check: bool = False


def run_plan(config: RunConfig, options: Options) -> int:
    """Plans, prints, and writes `--json`.

    Returns:
        0, whether it fits or not: the last line says which. Where that is to be checked, 3 if a stage does not fit.

    Raises:
        UserError: a layout that cannot work, specialists that are not there, an unknown GPU, or a file of the user's
            in place of `--json`.
    """
    if options.json_file:
        _check_json(Path(options.json_file), options.overwrite)
    gpu = find_gpu(options.gpu)
    cards, notes = read_cards(config)
    on_cpu = config.device == "cpu"
    automatic = "torch" if on_cpu else "transformer_engine"
    task = Task(
        config=config,
        cards=cards,
        samples=find_samples(config, options.sample_tokens),
        gpu=None if on_cpu else gpu,
        gpus=options.gpus or config.parallel.tensor * config.parallel.pipeline,
        mfu=options.mfu or default_mfu(config.precision),
        backend=automatic if config.backend == "auto" else config.backend,
    )
    task.check()
    limit = (options.gpu_memory or (0.0 if on_cpu else gpu.memory_gib)) * GIB or None
    stages = {name: plan_stage(task, name) for name in STAGES}
    gather = checkpoint_gather(task, stages["joint"])
    misfits = [name for name, stage in stages.items() if limit is not None and stage.peak > limit]
    advice = advise(task, limit) if misfits and limit is not None else None
    for line in [*heading(task, limit), f"sample lengths are {task.samples.source}", *notes]:
        print(line)
    for name, stage in stages.items():
        steps = config.warmup.steps if name == "warmup" else config.joint.steps
        print("", *stage_lines(task, stage, steps), sep="\n")
    if gather:
        print(f"saving a checkpoint gathers the optimizer's states: {gather / GIB:.1f} GiB of host memory a node")
    print(_save_line(config, save_memory(task, stages["joint"])))
    print(_disk_line(config, disk_space(config, "joint", cards)))
    print("", _verdict(task, stages, limit, misfits, advice), sep="\n")
    if options.json_file:
        _write_json(Path(options.json_file), _content(task, stages, gather, limit, misfits, advice))
    return DOES_NOT_FIT if options.check and misfits else 0


def _save_line(config: RunConfig, memory: SaveMemory) -> str:
    """What saves take of a node's host memory in all, and what the other setting would take between steps."""
    where = "beside training" if config.checkpoint.async_ else "while training waits"
    line = (
        f"host memory of a joint checkpoint: {memory.between_steps / GIB:.1f} GiB a node {where}, "
        f"{memory.on_exit / GIB:.1f} GiB at the end"
    )
    if config.checkpoint.reshardable == "always" and memory.by_rank < memory.always:
        line += f"; {memory.by_rank / GIB:.1f} GiB {where} with checkpoint.reshardable=on_exit"
    return line


def _disk_line(config: RunConfig, space: DiskSpace) -> str:
    """What the joint stage's checkpoints take of the disk; the warm-up's are megabytes."""
    best = " and keep_best" if config.checkpoint.keep_best else ""
    return (
        f"disk: {disk_size(space.checkpoint)} a joint checkpoint, {disk_size(space.at_once)} at once with "
        f"checkpoint.keep={config.checkpoint.keep}{best}"
    )


def _verdict(
    task: Task, stages: dict[str, StagePlan], limit: float | None, misfits: list[str], advice: Advice | None
) -> str:
    """The last line."""
    fullest = max(stages.values(), key=lambda stage: stage.peak)
    if limit is None:
        return f"the fullest rank needs {fullest.peak / GIB:.1f} GiB ({fullest.name})"
    room = f"{limit / GIB:.1f} GiB"
    if not misfits:
        return f"fits: the fullest rank needs {fullest.peak / GIB:.1f} of {room} ({fullest.name})"
    needs = ", ".join(f"{name} needs {stages[name].peak / GIB:.1f}" for name in misfits)
    problem = f"does not fit: {needs} of {room}"
    if advice is None:
        return f"{problem}; no setting fits, on any number of GPUs that was tried"
    gpus = f"on {advice.gpus} GPUs, with " if advice.gpus != task.gpus else ""
    time = f", a joint step {advice.seconds:.1f} s" if advice.seconds is not None else ""
    host = f", {advice.host_per_node / GIB:.0f} GiB of host memory a node" if advice.host_per_node else ""
    return f"{problem}; the nearest that fits: {gpus}{advice.text} ({advice.peak / GIB:.1f} GiB{host}{time})"


def _content(
    task: Task, stages: dict[str, StagePlan], gather: float, limit: float | None, misfits: list[str],
    advice: Advice | None,
) -> dict[str, Any]:  # fmt: skip
    """Everything, in bytes, seconds and operations."""
    return {
        "gpus": task.gpus,
        "gpu": _gpu_content(task.gpu) if task.gpu else None,
        "limit": limit,
        "backend": task.backend,
        "parallel": dataclasses.asdict(task.config.parallel) | {"data": task.data_parallel},
        "cards": {name: card.to_dict() for name, card in task.cards.items()},
        "sample_lengths": task.samples.source,
        "stages": {name: _stage_content(stage) for name, stage in stages.items()},
        "checkpoint_host_per_node": gather,
        "save_host_per_node": dataclasses.asdict(save_memory(task, stages["joint"])),
        "disk": {stage: _disk_content(disk_space(task.config, stage, task.cards)) for stage in stages},
        "does_not_fit": misfits,
        "advice": dataclasses.asdict(advice) | {"text": advice.text} if advice else None,
    }


def _disk_content(space: DiskSpace) -> dict[str, int]:
    return dataclasses.asdict(space) | {"at_once": space.at_once}


def _gpu_content(gpu: Gpu) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(gpu).items() if key != "driver_name"}


def _stage_content(stage: StagePlan) -> dict[str, Any]:
    ranks = [
        dataclasses.asdict(rank)
        | {"states": dataclasses.asdict(rank.states) | {"optimizer": rank.states.optimizer, "host": rank.states.host}}
        | {"total": rank.total}
        for rank in stage.ranks
    ]
    return {
        "work": dataclasses.asdict(stage.work),
        "ranks": ranks,
        "time": dataclasses.asdict(stage.time),
        "peak": stage.peak,
        "host_per_node": stage.host_per_node,
    }


@explained_paths()
def _check_json(path: Path, overwrite: bool) -> None:
    """Refuses to replace what is there, but for an earlier plan where that is asked for, and what cannot be written."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a terminal holds nothing
        return
    for problem, code in ((not path.parent.is_dir(), errno.ENOENT), (path.is_dir(), errno.EISDIR)):
        if problem:
            raise UserError(f"--json {path}: {os.strerror(code)}; give another file")
    check_can_be_written(path.parent, "--json")
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"--json {path} exists; give another file or --overwrite")
    if path.stat().st_size and not Mark(path.name, "does_not_fit").is_in(path.parent):
        raise UserError(f"--json {path} holds no plan, so it is not overwritten; give another file")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            write_text_atomic(path.resolve(), text)
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UserError(f"--json {path}: {error.strerror}; give another file") from None
