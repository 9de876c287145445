"""Losses and gradient norms of both stages at every layout, for sets of specialists that differ in all they can.

The one-rank run of each set is the reference. The ordinary test run goes through a few layouts in float32; the slow one
goes through all of them, each in both formats, the sets in turn; where `MEGAFUSER_LAYOUT_TABLE` names a file, through
every set at every layout, and writes what it measured there.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import run_ranks
from tests.parallel.layout_cases import LAYOUTS, SETS, STAGES, STEPS, Layout, layout, make_set
from tests.ports import free_ports

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}
ONE_RANK = layout(1, 1, 1)
CI_STEPS = 4
Results = dict[str, list[list[float]]]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layouts")
    return {name: make_set(root, name) for name in SETS}


def go_through(
    layouts: Mapping[str, Layout],
    cells: Mapping[str, Sequence[tuple[str, str]]],
    configs: Mapping[str, Path],
    *,
    steps: int,
    root: Path,
) -> dict[str, Results]:
    """What came out, by layout and `SET STAGE DTYPE`; layouts of one world size share their processes.

    Args:
        layouts: by name.
        cells: by layout, the sets of specialists and the formats to compute in.
        configs: of the sets.
        steps: of each run.
        root: an empty directory.
    """
    jobs: dict[int, list[dict[str, Any]]] = {}
    for name, one in layouts.items():
        runs = [
            {
                "name": f"{name}/{specialists} {stage} {dtype}",
                "config": str(configs[specialists]),
                "overrides": [*one.overrides, f"precision.dtype={dtype}"],
                "stage": stage,
            }
            for specialists, dtype in cells[name]
            for stage in STAGES
        ]
        jobs.setdefault(one.world, []).append({"port": free_ports(1)[0], "steps": steps, "runs": runs})
    found: dict[str, Results] = {name: {} for name in layouts}
    for world, of_world in jobs.items():
        jobs_file, results_file = root / f"jobs_{world}.json", root / f"results_{world}.json"
        jobs_file.write_text(json.dumps(of_world), encoding="utf-8")
        run_ranks(world, "tests.parallel.layout_cases", [str(jobs_file), str(results_file)], timeout=6000)
        for result in json.loads(results_file.read_text(encoding="utf-8")):
            name, run = result["name"].split("/")
            found[name][run] = result["steps"]
    return found


def largest_differences(found: Results, expected: Results) -> dict[str, float]:
    """By run, the largest relative difference of any loss or gradient norm of any step."""
    return {
        run: max(
            _difference(ours, reference)
            for step, wanted in zip(steps, expected[run], strict=True)
            for ours, reference in zip(step, wanted, strict=True)
        )
        for run, steps in found.items()
    }


def _difference(ours: float, reference: float) -> float:
    """Relative; infinite where a number is not finite, since `max` would lose a NaN."""
    difference = abs(ours / reference - 1)
    return difference if math.isfinite(difference) else math.inf


def assert_worth_comparing_with(expected: Results) -> None:
    """Losses that move by far more than what is tolerated, so that equality says something."""
    for run, steps in expected.items():
        first, last = steps[0][:-1], steps[-1][:-1]
        assert max(abs(b / a - 1) for a, b in zip(first, last, strict=True)) > 50 * TOLERANCES["fp32"], run


@pytest.mark.parallel
def test_a_few_layouts_equal_one_rank(configs: dict[str, Path], tmp_path: Path) -> None:
    """Uneven depths, shared key-value heads, interleaving, recompute, overlap, empty rows; one set each."""
    cells = {name: [(one.of_ci, "fp32")] for name, one in LAYOUTS.items() if one.of_ci}
    layouts = {"one": ONE_RANK, **{name: LAYOUTS[name] for name in cells}}
    cells["one"] = [(name, "fp32") for name in SETS]
    found = go_through(layouts, cells, configs, steps=CI_STEPS, root=tmp_path)
    expected = found.pop("one")
    assert_worth_comparing_with(expected)
    for name, results in found.items():
        assert len(results) == len(STAGES)
        differences = largest_differences(results, expected)
        assert max(differences.values()) <= TOLERANCES["fp32"], (name, differences)


@pytest.mark.slow
@pytest.mark.parallel
def test_every_layout_equals_one_rank(configs: dict[str, Path], tmp_path: Path) -> None:
    path = os.environ.get("MEGAFUSER_LAYOUT_TABLE")
    every = [(name, dtype) for name in SETS for dtype in TOLERANCES]
    names = list(SETS)
    cells = {
        name: every if path else [(names[index % len(names)], "fp32"), (names[(index + 2) % len(names)], "bf16")]
        for index, name in enumerate(LAYOUTS)
    }
    found = go_through({"one": ONE_RANK, **LAYOUTS}, {"one": every, **cells}, configs, steps=STEPS, root=tmp_path)
    expected = found.pop("one")
    assert_worth_comparing_with(expected)
    table = {name: largest_differences(results, expected) for name, results in found.items()}
    if path:
        Path(path).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    assert all(len(differences) == len(STAGES) * len(cells[name]) for name, differences in table.items())
    wrong = {
        f"{name}: {run}": difference
        for name, differences in table.items()
        for run, difference in differences.items()
        if difference > TOLERANCES[run.split()[-1]]
    }
    assert not wrong
