#!/usr/bin/env python3
"""How long training stands still for a checkpoint that is written beside it, against one that it waits for.

One rank trains a made-up fusion with the joint stage's optimizer. By turns, it saves the whole state (weights, masters,
moments) and waits for the end, and saves it beside further steps: `stands still` is what passes until the next step may
begin. Both write the same files, hash them, flush them to the disk, rename their directory. `step` is a step with
nothing beside it, `step beside` the mean of those during which the save goes on: what a save costs beside its stall,
where its writing and training share processors.

  python benchmarks/checkpoint_stall.py [--hidden 384] [--layers 2] [--dtype fp32|bf16] [--turns 5] [--json FILE]

The default's state is 1.35 GB; the directory (a temporary one, or `--directory`) needs room for it twice.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fusion_case import Case, our_engine, packed_rows, threads, timed  # noqa: E402

GOAL = 0.2


def save(engine: Any, target: Path, *, copy: bool) -> Any:
    """Begins a save as `megafuser.training.checkpoint_saver` does."""
    from megafuser.checkpoint.background import BackgroundSave
    from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, write_manifest
    from megafuser.checkpoint.snapshot import take_snapshot
    from megafuser.training.checkpoint_contents import training_state
    from megafuser.training.optimizer_state import private_storages

    state = training_state(engine, 1, is_loading=False)
    snapshot = take_snapshot(state, copy=copy, private=private_storages(engine.optimizer, state["optimizer"]))
    manifest = Manifest(FORMAT_VERSION, "joint", "fp32", {})
    return BackgroundSave(snapshot, target, lambda path, known: write_manifest(path, manifest, known), lambda: None)


def outcome_of(running: Any) -> Any:
    """What became of a save, which must have succeeded."""
    outcome = running.wait()
    if outcome.error:
        sys.exit(f"the save failed: {outcome.error}")
    shutil.rmtree(outcome.target)
    return outcome


def measure(engine: Any, rows: list[Any], directory: Path) -> dict[str, float]:
    """One turn: a step alone, a save that is waited for, and one beside steps."""
    found = {"step": timed(lambda: engine.step(rows))}
    started = time.perf_counter()
    outcome = outcome_of(save(engine, directory / "waited", copy=False))
    found |= {"waited": time.perf_counter() - started, "nbytes": outcome.nbytes}
    started = time.perf_counter()
    running = save(engine, directory / "beside", copy=True)
    found["stall"] = time.perf_counter() - started
    beside = []
    while not running.done:
        beside.append(timed(lambda: engine.step(rows)))
    outcome = outcome_of(running)
    return found | {"step_beside": statistics.mean(beside), "steps_beside": len(beside), "writing": outcome.seconds}


def main() -> None:
    """Measures in turns, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="where to save; a temporary directory by default")
    parser.add_argument("--json", type=Path, help="write the numbers")
    options = parser.parse_args()
    threads(options.threads)
    case = Case(hidden=options.hidden, layers=options.layers, dtype=options.dtype, samples=4, width=512)
    rows, _ = packed_rows(case)
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        our_engine(case, "joint") as engine,
    ):
        engine.step(rows)
        turns = []
        for turn in range(options.turns + 1):  # the first one warms up
            turns.append(measure(engine, rows, Path(directory)))
            shown = f"waited for {turns[-1]['waited']:.2f} s, stands still {turns[-1]['stall']:.2f} s"
            print(f"turn {turn} of {options.turns}: {shown}", file=sys.stderr, flush=True)
    median = {key: statistics.median(turn[key] for turn in turns[1:]) for key in turns[0]}
    ratio = median["stall"] / median["waited"]
    print("| state | waited for | stands still | of it | writing beside | step | step beside |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    seconds = [f"{median[key]:.2f} s" for key in ("waited", "stall", "writing", "step", "step_beside")]
    cells = [f"{median['nbytes'] / 1e9:.2f} GB", *seconds[:2], f"{ratio:.1%}", *seconds[2:]]
    print(f"| {' | '.join(cells)} |")
    print(f"goal: at most {GOAL:.0%}: {'reached' if ratio <= GOAL else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"median": median, "ratio": ratio, "goal": GOAL, "turns": turns[1:]}))


if __name__ == "__main__":
    main()
