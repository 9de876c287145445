#!/usr/bin/env python3
"""How the time and memory of a joint step grow with the number of specialists, their depth and width, and the samples.

One size is changed at a time, from a small base; every case is a process of its own (see `fusion_step.py`), repeated in
turns, medians. `time / FLOPs` is the time of a step over its useful FLOPs, as a multiple of the axis's first case: at
most 1 is linear growth or better. `GiB` is the peak beyond what the process had before the model was built, and
`growth` is that over the axis's first case; `expected` is the same of the parameters, whose weights, gradients and
Adam's states (16 bytes each in float32) are most of it: more samples should cost no memory at all.

  python benchmarks/scaling.py [--turns 2] [--json FILE]
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fusion_case import Case, card_of, packed_rows  # noqa: E402

BASE = Case(specialists=2, hidden=512, layers=2, vocabulary=8000, samples=12, width=1024)
AXES = {
    "specialists": ("specialists", (2, 3, 5)),
    "depth": ("layers", (2, 4, 8)),
    "width": ("hidden", (512, 768, 1024)),
    "samples": ("samples", (12, 24, 48)),
}


def measure(case: Case, steps: int, threads: int) -> dict[str, Any]:
    """One case in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("fusion_step.py")), "--side", "ours", "--stages", "joint"]
    command += ["--case", case.to_json(), "--steps", str(steps), "--threads", str(threads), "--claim", "3"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def useful_flops(case: Case) -> float:
    """Of one joint step."""
    from megafuser.training.flops import step_flops

    return step_flops([card_of(case)] * case.specialists, packed_rows(case)[0], backward=True)


def main() -> None:
    """Measures in turns, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers")
    options = parser.parse_args()
    cases = {
        (axis, value): dataclasses.replace(BASE, **{field: value})
        for axis, (field, values) in AXES.items()
        for value in values
    }
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases.values()}
    for turn in range(options.turns):
        for case, done in runs.items():
            done.append(measure(case, options.steps, options.threads))
            shown = f"turn {turn + 1} of {options.turns}, {case}: {min(done[-1]['seconds']):.2f} s"
            print(shown, file=sys.stderr, flush=True)
    lines = [
        "| axis | value | rows | useful GFLOP | s / step | time / FLOPs | parameters | GiB | growth | expected |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    results = []
    for axis, (_, values) in AXES.items():
        first: dict[str, Any] = {}
        for value in values:
            case = cases[axis, value]
            done = runs[case]
            found: dict[str, Any] = {"axis": axis, "value": value, "rows": done[0]["rows"]}
            found["seconds"] = statistics.median(second for one in done for second in one["seconds"])
            found["flops"] = useful_flops(case)
            found["parameters"] = case.specialists * card_of(case).parameter_count()
            found["memory"] = max(one["peak"] - one["before"] for one in done)
            first = first or found
            growth = found["seconds"] / first["seconds"] / (found["flops"] / first["flops"])
            memory, expected = found["memory"] / first["memory"], found["parameters"] / first["parameters"]
            found |= {"time_per_flops": growth, "memory_growth": memory, "expected_memory_growth": expected}
            results.append(found)
            cells = [axis, str(value), str(found["rows"]), f"{found['flops'] / 1e9:.0f}", f"{found['seconds']:.2f}"]
            cells += [f"{growth:.2f}", f"{found['parameters'] / 1e6:.1f} M", f"{found['memory']:.2f}"]
            lines.append(f"| {' | '.join([*cells, f'{memory:.2f}', f'{expected:.2f}'])} |")
    print(f"base {BASE}; joint, {options.threads} threads\n")
    print("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
