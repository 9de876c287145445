"""What each command calls. Heavy modules are imported in the functions, after the cheap checks."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from megafuser.errors import UserError
from megafuser.extras import require
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.signals import leaving_at_a_signal
from megafuser.runtime.world import detect_world

if TYPE_CHECKING:
    from megafuser.config.schema import RunConfig
    from megafuser.inference.open_model import Opening


def warmup(arguments: argparse.Namespace) -> int:
    """`megafuser warmup`: stage 1."""
    started = time.monotonic()
    from megafuser.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    if _is_finished(config, "warmup"):
        return 0
    world = detect_world()
    configure_logs(world.rank)
    with leaving_at_a_signal(world):  # until the stage takes them over
        from megafuser.training.stages import run_warmup

        return run_warmup(config, time_limit=_left(arguments.time_limit, started))


def joint(arguments: argparse.Namespace) -> int:
    """`megafuser joint`: stage 2."""
    started = time.monotonic()
    from megafuser.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    if _is_finished(config, "joint"):
        return 0
    world = detect_world()
    configure_logs(world.rank)
    with leaving_at_a_signal(world):  # until the stage takes them over
        from megafuser.training.stages import run_joint

        return run_joint(config, time_limit=_left(arguments.time_limit, started))


def plan(arguments: argparse.Namespace) -> int:
    """`megafuser plan`: what a run will need."""
    from megafuser.config.load import load_config
    from megafuser.planning.command import Options, run_plan

    options = Options(
        gpus=arguments.gpus,
        gpu=arguments.gpu,
        gpu_memory=arguments.gpu_memory,
        mfu=arguments.mfu,
        sample_tokens=arguments.sample_tokens,
        json_file=arguments.json,
    )
    configure_logs(0)
    return run_plan(load_config(arguments.config, arguments.overrides), options)


def reshard(arguments: argparse.Namespace) -> int:
    """`megafuser reshard`: a checkpoint for any layout."""
    configure_logs(detect_world().rank)
    from megafuser.training.reshard import run_reshard

    return run_reshard(arguments.checkpoint, arguments.out, arguments.overrides, overwrite=arguments.overwrite)


def status(arguments: argparse.Namespace) -> int:
    """`megafuser status`: where a run is."""
    from megafuser.watching.status import read_status
    from megafuser.watching.status_text import status_text

    if arguments.overrides:
        raise UserError(f"unknown argument {arguments.overrides[0]!r}; see megafuser status --help")
    found = read_status(arguments.run_dir)
    print(found.to_json() if arguments.json else status_text(found))
    return 0


def report(arguments: argparse.Namespace) -> int:
    """`megafuser report`: the evaluation of a checkpoint."""
    from megafuser.config.load import load_config
    from megafuser.config.run_directory import resolve_checkpoint

    layout = [
        f"parallel.{key}={size}"
        for key, size in (("tensor", arguments.tensor), ("pipeline", arguments.pipeline))
        if size is not None
    ]
    config = load_config(arguments.config, [*arguments.overrides, *layout])
    resolve_checkpoint(arguments.checkpoint)
    if Path(arguments.out).exists() and not arguments.overwrite:
        raise UserError(f"--out {arguments.out} exists; choose another directory or give --overwrite")
    configure_logs(detect_world().rank)
    from megafuser.evaluation.report import run_report

    return run_report(
        config,
        arguments.checkpoint,
        arguments.out,
        arguments.max_samples,
        overwrite=arguments.overwrite,
        training=arguments.training,
    )


def generate(arguments: argparse.Namespace) -> int:
    """`megafuser generate`: completions."""
    if (arguments.prompt is None) == (arguments.file is None):
        raise UserError("give either --prompt TEXT or --file FILE with --out FILE")
    if (arguments.file is None) != (arguments.out is None):
        raise UserError("--file and --out go together")
    if arguments.system is not None and (arguments.file is not None or arguments.raw):
        raise UserError("--system goes with --prompt, and not with --raw")
    if "" in arguments.stop:
        raise UserError("--stop is empty; give the text that ends a completion")
    from megafuser.config.run_directory import resolve_checkpoint

    resolve_checkpoint(arguments.checkpoint)
    configure_logs(detect_world().rank)
    from megafuser.inference.generate import Options, run_generate
    from megafuser.inference.sampling import SamplingParameters

    options = Options(
        prompt=arguments.prompt,
        file=None if arguments.file is None else Path(arguments.file),
        out=None if arguments.out is None else Path(arguments.out),
        overwrite=arguments.overwrite,
        raw=arguments.raw,
        system=arguments.system,
        max_new_tokens=arguments.max_new_tokens,
        sampling=SamplingParameters(
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            top_k=arguments.top_k,
            repetition_penalty=arguments.repetition_penalty,
            seed=arguments.seed,
        ),
        stop=tuple(arguments.stop),
        show_gate=arguments.show_gate,
        max_running=arguments.max_running,
    )
    return run_generate(_opening(arguments), options)


def serve(arguments: argparse.Namespace) -> int:
    """`megafuser serve`: an HTTP server."""
    api_key = os.environ.get("MEGAFUSER_API_KEY") if arguments.api_key is None else arguments.api_key
    if api_key is not None and (not api_key or not all("!" <= letter <= "~" for letter in api_key)):
        raise UserError(
            "--api-key (or MEGAFUSER_API_KEY) must be one or more printable ASCII letters without blanks; give neither "
            "to serve without a key"
        )
    from megafuser.config.run_directory import resolve_checkpoint

    resolve_checkpoint(arguments.checkpoint)
    require("serve", "megafuser serve")
    configure_logs(detect_world().rank)
    from megafuser.serving.server import run_serve
    from megafuser.serving.settings import Settings

    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        api_key=api_key,
        model_name=arguments.model_name,
        max_running=arguments.max_running,
        max_queue=arguments.max_queue,
        max_body_mib=arguments.max_body_mib,
        max_tokens=arguments.max_tokens,
        request_timeout=arguments.request_timeout,
        grace_seconds=arguments.grace_seconds,
    )
    return run_serve(_opening(arguments), settings)


def evaluate(arguments: argparse.Namespace) -> int:
    """`megafuser evaluate`: benchmarks."""
    from megafuser.config.run_directory import resolve_checkpoint

    tasks = tuple(name.strip() for name in arguments.tasks.split(",") if name.strip())
    if not tasks:
        raise UserError("--tasks is empty; give names with commas, e.g. --tasks gsm8k,truthfulqa_mc2")
    if arguments.alone and arguments.force is not None:
        raise UserError("--alone goes through all specialists; leave --force out")
    if arguments.no_network_isolation and not arguments.allow_code_execution:
        raise UserError("--no-network-isolation goes with --allow-code-execution")
    resolve_checkpoint(arguments.checkpoint)
    require("eval", "megafuser evaluate")
    world = detect_world()
    configure_logs(world.rank)
    with leaving_at_a_signal(world):  # until the evaluation takes them over
        from megafuser.harness.evaluate import Options, run_evaluate

        options = Options(
            tasks=tasks,
            include_paths=tuple(arguments.include_path),
            out=Path(arguments.out),
            overwrite=arguments.overwrite,
            limit=arguments.limit,
            raw=arguments.raw,
            num_fewshot=arguments.num_fewshot,
            alone=arguments.alone,
            allow_code=arguments.allow_code_execution,
            isolated=not arguments.no_network_isolation,
            max_running=arguments.max_running,
        )
        return run_evaluate(_opening(arguments), options)


def _opening(arguments: argparse.Namespace) -> "Opening":
    from megafuser.inference.open_model import Opening

    return Opening(
        checkpoint=arguments.checkpoint,
        tensor=arguments.tensor,
        pipeline=arguments.pipeline,
        overrides=arguments.overrides,
        cache_gib=arguments.cache_gib,
        force=arguments.force,
    )


def _left(time_limit: float | None, started: float) -> float | None:
    """What is left of the limit: importing torch takes seconds, from a disk in the network many."""
    return None if time_limit is None else time_limit - (time.monotonic() - started)


def _is_finished(config: "RunConfig", stage: str) -> bool:
    """Whether there is nothing left to do, which is then said; without the seconds that importing torch takes."""
    from megafuser.config.run_directory import finished_checkpoint

    checkpoint = finished_checkpoint(config, stage)
    if checkpoint is None:
        return False
    if detect_world().rank == 0:
        print(f"{stage} is finished: {checkpoint}")
    return True
