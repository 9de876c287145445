#!/usr/bin/env python3
"""What a training step pays for being watched: norms by group, the ranks' agreement to go on, signs of life, metrics.

Steps with all of it and steps without any take turns on the same engine. `of a step` is what a part takes, timed by
itself in the full steps with all ranks in step, over the median step without any. The signs of life come from a thread
every `faults.silent_seconds` / 6, beside both kinds of step: a round of it is timed, and its share of the time between
two rounds is given. `all, by turns` compares the medians of rank 0's processor time in full and in bare steps: as far
as the machine's noise lets it be seen.

  python -m torch.distributed.run --nproc-per-node 2 benchmarks/step_overheads.py [--stage joint|warmup] [--turns 8]

One process (`python benchmarks/step_overheads.py --threads 2`) agrees with nobody, and gives no signs.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fusion_case import Case, our_engine, packed_rows, threads, timed  # noqa: E402

GOAL = 0.02
DOMAIN = "any"
ROUNDS = 200
PARTS = ("norms by group", "agreement", "metrics")


class Clock:
    """Seconds of the parts of one step, by name."""

    def __init__(self) -> None:
        """Has timed nothing yet."""
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times its body; the ranks begin together, so that none waits for another's work."""
        if dist.get_world_size() > 1:
            dist.barrier()
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Watched:
    """An engine's steps as the training loop has them, and bare ones."""

    def __init__(self, case: Case, engine: Any, rows: list[Any], stage: str, directory: str, world: Any) -> None:
        """Opens the run's files in a directory."""
        from megafuser.runtime.heartbeat import Heartbeat
        from megafuser.training.metric_sinks import Watch
        from megafuser.training.stop import Stop

        config = made_up_config(case, directory)
        self._case, self._engine, self._rows, self._stage = case, engine, rows, stage
        self._tokens = sum(view.used for row in rows for view in row.specialists)
        session: Any = SimpleNamespace(
            config=config,
            domain_names=[DOMAIN],
            specialist_names=case.names,
            device=engine.device,
            device_name="cpu",
            world=world,
        )
        self._watch = Watch(session, stage, steps=10**6, done=0, valid=[])
        self._stop = Stop(engine.device, time_limit=1e9)
        self.beat_interval = config.faults.silent_seconds / 6
        self.heartbeat = Heartbeat(config.faults.silent_seconds, config.faults.stuck_minutes * 60)
        self._step = 0

    def full(self) -> dict[str, float]:
        """One step with everything; the seconds of its parts."""
        from megafuser.training import engine

        clock, norms = Clock(), engine.gradient_norms

        def timed_norms(chunks: Any) -> dict[str, float]:
            with clock.part("norms by group"):
                return norms(chunks)

        engine.gradient_norms = timed_norms
        try:
            started = time.perf_counter()
            result = self._engine.step(self._rows)
        finally:
            engine.gradient_norms = norms
        self._step += 1
        with clock.part("metrics"):
            self._watch.write(self._line(result, time.perf_counter() - started))
        self.heartbeat.mark(self._step)
        with clock.part("agreement"):
            self._stop.after_step(None)
        return clock.seconds

    def bare(self) -> None:
        """One step without."""
        from megafuser.training import engine

        norms = engine.gradient_norms
        engine.gradient_norms = lambda chunks: {}
        try:
            self._engine.step(self._rows)
        finally:
            engine.gradient_norms = norms

    def _line(self, result: Any, seconds: float) -> dict[str, Any]:
        """The fields of the loop's line that take work."""
        from fusion_case import card_of

        from megafuser.training.flops import step_flops
        from megafuser.training.metrics import loss_metrics, peak_memory_gib

        flops = step_flops([card_of(self._case)] * self._case.specialists, self._rows, backward=self._stage == "joint")
        return {
            "stage": self._stage,
            "split": "train",
            "step": self._step,
            **loss_metrics(result.sums, [DOMAIN], self._case.names),
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            **{f"grad_norm/{name}": norm for name, norm in result.group_norms.items()},
            **{f"lr/{name}": rate for name, rate in result.group_rates.items()},
            "packing_efficiency": 1.0,
            "tokens": self._tokens,
            "tokens_per_second": self._tokens / seconds,
            "step_seconds": seconds,
            "checkpoint_stall_seconds": 0.0,
            "tflops_per_device": flops / seconds / 1e12,
            "peak_memory_gib": peak_memory_gib(self._engine.device),
        }

    def round_seconds(self) -> float:
        """Seconds of one of the heartbeat's rounds, in this thread."""
        rounds = iter(range(ROUNDS))
        beat = self.heartbeat
        ended = beat._ended
        beat._ended = SimpleNamespace(wait=lambda _: next(rounds, None) is None, is_set=lambda: True)  # type: ignore
        seconds = timed(beat._run) / ROUNDS
        beat._ended = ended
        return seconds

    def close(self) -> None:
        """Closes the files."""
        self._watch.close()


def made_up_config(case: Case, directory: str) -> Any:
    """A configuration whose run is the directory; the rest is what every configuration must have."""
    from megafuser.config.load import load_config

    files = {"train": ["train.jsonl"], "valid": ["valid.jsonl"]}
    values = {
        "run_dir": directory,
        "specialists": [{"name": name, "checkpoint": name, "template": "plain"} for name in case.names],
        "data": {"sequence_length": case.width, "domains": {DOMAIN: files}},
    }
    path = Path(directory) / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_config(path)


def measure(case: Case, stage: str, turns: int, world: Any) -> dict[str, Any]:
    """Turns of both kinds of step, each kind first in every other turn; medians in seconds, shares of a bare step."""
    rows, _ = packed_rows(case)
    own = rows[world.rank :: world.size] or rows[:1]
    own = (own * len(rows))[: -(-len(rows) // world.size)]  # as many on every rank
    times: dict[str, list[float]] = {name: [] for name in ("full", "bare", "full cpu", "bare cpu", *PARTS)}
    with (
        tempfile.TemporaryDirectory() as directory,
        our_engine(case, stage, world if world.size > 1 else None) as engine,
        contextlib.closing(Watched(case, engine, own, stage, directory, world)) as watched,
        watched.heartbeat,
    ):
        watched.full()
        watched.bare()
        for turn in range(turns):
            for kind in ("full", "bare") if turn % 2 else ("bare", "full"):
                if world.size > 1:
                    dist.barrier()
                started, cpu = time.perf_counter(), time.process_time()
                parts = watched.full() if kind == "full" else watched.bare()
                times[kind].append(time.perf_counter() - started)
                times[f"{kind} cpu"].append(time.process_time() - cpu)
                for part, seconds in (parts or {}).items():
                    times[part].append(seconds)
            if world.rank == 0:
                print(f"{stage}, turn {turn + 1} of {turns}", file=sys.stderr, flush=True)
        beat = watched.round_seconds() / watched.beat_interval if world.size > 1 else 0.0
    median = {name: statistics.median(values) for name, values in times.items()}
    shares = {part: median[part] / median["bare"] for part in PARTS} | {"signs of life": beat}
    return {
        "stage": stage,
        "seconds": median,
        "shares": shares | {"sum": sum(shares.values())},
        "all": median["full cpu"] / median["bare cpu"] - 1,
        "times": times,
    }


def table(found: dict[str, Any]) -> list[str]:
    """The table's lines."""
    names = [*PARTS, "signs of life", "sum"]
    shares = [f"{100 * found['shares'][name]:.3f} %" for name in names]
    cells = [found["stage"], f"{found['seconds']['bare']:.2f}", *shares, f"{100 * found['all']:+.1f} %"]
    return [
        f"| stage | s / step | {' | '.join(names)} | all, by turns |",
        f"|---|{'---:|' * (len(names) + 2)}",
        f"| {' | '.join(cells)} |",
    ]


def main() -> None:
    """Parses, measures, prints on rank 0."""
    from megafuser.runtime.world import detect_world

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--stage", choices=("joint", "warmup"), default="joint")
    parser.add_argument("--turns", type=int, default=8, help="steps of each kind")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    for name in ("hidden", "layers", "vocabulary", "samples", "mean", "width"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Case, name))
    parser.add_argument("--json", type=Path, help="write the numbers")
    options = parser.parse_args()
    threads(options.threads)
    sizes = {name: getattr(options, name) for name in ("hidden", "layers", "vocabulary", "samples", "mean", "width")}
    case, world = Case(dtype=options.dtype, **sizes), detect_world()
    found = measure(case, options.stage, options.turns, world)
    if world.rank == 0:
        print(f"{case}; {world.size} ranks of {options.threads} threads.\n")
        print("\n".join(table(found)))
        print(f"goal: at most {GOAL:.0%} of a step: {'reached' if found['shares']['sum'] <= GOAL else 'missed'}")
        if options.json:
            options.json.write_text(json.dumps({"case": case.to_json()} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
