"""The preflight: every rank looks, rank 0 hears all, and all go or none does.

What a rank looks at by itself is `preflight.node`; what follows from all reports is `preflight.report`.
"""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megafuser.errors import BAD_INPUT, UserError, explained_paths
from megafuser.preflight.all_reduce import try_all_reduce
from megafuser.preflight.rendezvous import Meeting, Silence, meet
from megafuser.preflight.report import MACHINE_FAILURE, MachineFailure, Report, Verdict, judge
from megafuser.runtime.logs import quiet_libraries
from megafuser.runtime.signals import leaving_at_a_signal
from megafuser.runtime.world import World, check_world_size, detect_world, rendezvous

if TYPE_CHECKING:
    from megafuser.config.schema import RunConfig

_SECONDS = "MEGAFUSER_PREFLIGHT_SECONDS"
_DEFAULT_SECONDS = "120"


@dataclass(frozen=True)
class Asked:
    """What is looked at.

    Attributes:
        stage: `warmup` or `joint`.
        config: file of the run's configuration.
        overrides: `dotted.key=value`.
        trial: whether it is a trial of the stage, which needs no room for checkpoints and leaves a run alone.
    """

    stage: str
    config: str
    overrides: Sequence[str]
    trial: bool = False


def run_preflight(asked: Asked) -> int:
    """Looks before a stage runs; every rank calls it.

    Where it has run on several ranks, the process must end by `os._exit`: a collective operation may still wait.

    Returns:
        The exit code, other than 0 on rank 0 alone: 0 go, 2 the user can mend it, 1 a machine fails.
    """
    world, environment = World(rank=0, size=1, local_rank=0, launcher="single", local_size=1), dict(os.environ)
    try:
        world = detect_world()
        quiet_libraries()
        if world.launcher == "torchrun" and world.size > 1:
            raise UserError(
                "the preflight runs under srun (slurm/*.sh) or as one process, not under torchrun; start it so"
            )
        seconds = _patience()
        if world.size > 1:
            address, port = rendezvous(world, environment)
            environment |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        # A job that is ended or put off meanwhile has nothing to save, and goes on with the same command.
        with leaving_at_a_signal(world), meet(world, environment, seconds) as meeting:
            return _preflight(asked, meeting, environment, seconds)
    except UserError as error:
        _say(f"error: {socket.gethostname()}: {error}")
        return BAD_INPUT
    except Silence:
        _say(
            f"error: {socket.gethostname()} (rank {world.rank}): rank 0 at {environment['MASTER_ADDR']}:"
            f"{environment['MASTER_PORT']} cannot be reached, or does not answer; see its own lines in the log, or "
            "exclude its node or this one (sbatch --exclude=NODE), and submit again"
        )
        return MACHINE_FAILURE


def _preflight(asked: Asked, meeting: Meeting, environment: Mapping[str, str], seconds: float) -> int:
    world = meeting.world
    report = Report(rank=world.rank, host=socket.gethostname())
    device = "cpu"
    try:
        with explained_paths():
            device = _examine(report, asked, world)
    except UserError as error:
        report.mistakes.append(str(error))
    except MachineFailure as error:
        report.failures.append(str(error))
    except Exception as error:
        # Told with the node's name; the traceback is there for whoever looks into it.
        traceback.print_exc()
        report.failures.append(
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; see its traceback in the log, and where "
            "the machine is the cause, exclude the node (sbatch --exclude=NODE) and submit again"
        )
    verdict = _agree(meeting, report, seconds)
    if verdict.code or verdict.finished:
        return verdict.code if world.rank == 0 else 0
    if world.size > 1:
        second = Report(rank=world.rank, host=report.host)
        if problem := try_all_reduce(world, device, environment, seconds):
            second.failures.append(problem)
        verdict = _agree(meeting, second, seconds)
    if world.rank == 0 and not verdict.code:
        _say(f"preflight: {world.size} ranks are ready" if world.size > 1 else "preflight: this process is ready")
    return verdict.code if world.rank == 0 else 0


def _examine(report: Report, asked: Asked, world: World) -> str:
    """Fills a rank's report, cheap things first; gives the type of the device.

    Raises:
        UserError: something that this rank's node lacks.
    """
    from megafuser.config.load import load_config
    from megafuser.config.run_directory import RunDirectory, finished_checkpoint
    from megafuser.preflight import node

    report.facts |= node.versions()
    stage, config = asked.stage, load_config(asked.config, asked.overrides)
    if not asked.trial and finished_checkpoint(config, stage) is not None:
        report.finished = True
        return "cpu"
    try:
        check_world_size(config.parallel, world.size)
    except UserError as error:
        report.run_mistakes.append(str(error))
    # Going on from a joint checkpoint needs no converted specialist.
    if asked.trial or not (stage == "joint" and RunDirectory(Path(config.run_dir)).latest(stage)):
        report.mistakes += node.missing_specialists(config)
    if report.mistakes or report.run_mistakes:
        return "cpu"
    device, facts, report.warnings = node.check_device(config, world.local_rank)
    report.facts |= facts
    if world.rank == 0:
        try:
            report.run_warnings = _examine_run(config, asked, world, device)
        except UserError as error:
            report.run_mistakes.append(str(error))
    return device


def _examine_run(config: "RunConfig", asked: Asked, world: World, device: str) -> list[str]:
    """What one rank looks at for all; gives what may cost time or fail later, a line each.

    Raises:
        UserError: what the stage would refuse, or there is no room for its checkpoints.
    """
    from megafuser.checkpoint.specialist_sources import sources_from_config
    from megafuser.data.sources.files import check_sources
    from megafuser.preflight.caches import untokenized
    from megafuser.preflight.disk import check_room
    from megafuser.training.stage_start import begins_from, check_start, prepare_stage, trial_start
    from megafuser.training.trial import check_trial_directory, trial_config

    if asked.trial:  # saves nothing
        sources = sources_from_config(config)
        start = trial_start(config, asked.stage, sources)
        config = trial_config(config)
        check_trial_directory(config)
    else:
        sources = check_start(config, asked.stage)
        start = begins_from(config, asked.stage)
        check_room(config, asked.stage, sources)
    check_sources(config.data)
    session = prepare_stage(config, sources, start)
    warnings = untokenized(session)
    if device == "cuda":
        import torch

        from megafuser.planning.gpus import installed_gpu
        from megafuser.preflight.memory import misfit

        cards = {source.name: source.card for source in sources}
        properties = torch.cuda.get_device_properties(session.device)
        gpu = installed_gpu(properties.name, properties.total_memory)
        warnings += misfit(config, asked.stage, cards, gpus=world.size, gpu=gpu, backend=session.backend)
    return warnings


def _agree(meeting: Meeting, report: Report, seconds: float) -> Verdict:
    """Everybody gets rank 0's verdict, which it has said."""

    def tell(lines: Sequence[str | None]) -> str:
        reports = [Report.from_json(line) for line in lines if line is not None]
        silent = [rank for rank, line in enumerate(lines) if line is None]
        verdict = judge(reports)
        for warning in verdict.warnings:
            _say(f"warning: {warning}")
        for error in verdict.errors:
            _say(f"error: {error}")
        code = verdict.code
        if silent:
            ranks = ", ".join(map(str, silent))
            _say(
                f"error: {_nodes_of(silent, len(lines))}: no word of rank {ranks} within {seconds:.0f} seconds; "
                f"exclude the node (sbatch --exclude=NODE) and submit again, or set {_SECONDS} to more"
            )
            code = code or MACHINE_FAILURE
        return f"{code} {int(verdict.finished)}"

    # The others wait longer than rank 0, which waits for the slowest of them.
    code, finished = meeting.decide(report.to_json(), tell, seconds * (1 if meeting.world.rank == 0 else 2)).split()
    return Verdict(code=int(code), finished=finished == "1")


def _nodes_of(ranks: Sequence[int], size: int) -> str:
    """The nodes of ranks that Slurm has laid out in blocks; all of the job's where it does not say which."""
    listed = os.environ.get("SLURM_JOB_NODELIST", "a node")
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return f"one of {listed}"
    hosts = shown.stdout.split()
    if not hosts or size % len(hosts):
        return f"one of {listed}"
    return ", ".join(dict.fromkeys(hosts[rank * len(hosts) // size] for rank in ranks))


def _patience() -> float:
    text = os.environ.get(_SECONDS, _DEFAULT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{_SECONDS}={text} must be a number of seconds above 0")
    return seconds


def _say(text: str) -> None:
    print(f"megafuser: {' '.join(text.split())}", file=sys.stderr, flush=True)
