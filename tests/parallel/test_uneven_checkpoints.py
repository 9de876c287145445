"""A checkpoint of uneven stages goes on at other uneven stages, at interleaved chunks, and on one rank."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megafuser.checkpoint.index import stored_shapes
from megafuser.cli.main import main
from megafuser.config.run_directory import RunDirectory
from tests.fused_case import make_case, write_config
from tests.parallel.launch import run_commands

TOLERANCE = 1e-4
DEPTHS = {"text": 6, "code": 5, "math": 4}
# where each part of the run ends, on how many ranks, and their layout; uneven for at least one specialist each
PARTS: list[tuple[int, int, list[str]]] = [
    (2, 3, ["parallel.pipeline=3"]),
    (4, 2, ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]),
    (6, 1, []),
]


def joint(config: Path, run: Path, steps: int, *overrides: str) -> list[str]:
    return ["joint", "--config", str(config), f"run_dir={run}", f"joint.steps={steps}", *overrides]


def joint_lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["stage"] == "joint" and line["split"] == "train"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run in parts, and the one that one rank did in one go."""
    root = tmp_path_factory.mktemp("uneven")
    specialists: dict[str, dict[str, Any]] = {
        "text": {"template": "ultralm", "tie_word_embeddings": True, "num_hidden_layers": DEPTHS["text"]},
        "code": {"template": "codellama", "extra_tokens": 16, "num_hidden_layers": DEPTHS["code"]},
        "math": {"template": "alpaca", "extra_tokens": 1, "num_hidden_layers": DEPTHS["math"], "hidden_size": 48},
    }
    values = make_case(root, specialists=specialists)
    values["warmup"] = {"steps": 1, "samples_per_domain": 2, "lr": 1e-2}
    # constant, so that the schedule does not depend on where a part ends
    values["joint"] = {"steps": 6, "samples_per_domain": 2, "lr": 1e-3, "min_lr": 1e-3}
    values["optimizer"] = {"weight_decay": 0.1, "gate_lr_multiplier": 4.0}
    values["evaluation"]["interval"] = 100
    values["checkpoint"] = {"interval": 100, "keep": 8}
    config = write_config(root / "config.yaml", values)
    one, parts = root / "one", root / "parts"
    assert main(["warmup", "--config", str(config), f"run_dir={one}"]) == 0
    shutil.copytree(one, parts)
    assert main(joint(config, one, PARTS[-1][0])) == 0
    for end, ranks, layout in PARTS:
        command = joint(config, parts, end, *layout)
        if ranks > 1:
            run_commands(ranks, [command])
        else:
            assert main(command) == 0
    return parts, one


@pytest.mark.parallel
def test_a_run_goes_on_at_every_layout(runs: tuple[Path, Path]) -> None:
    found, expected = map(joint_lines, runs)
    assert [line["step"] for line in found] == [line["step"] for line in expected] == list(range(1, 7))
    for ours, reference in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm", "lr", "gate/text/code"):
            assert ours[key] == pytest.approx(reference[key], rel=TOLERANCE), (key, reference["step"])


@pytest.mark.parallel
def test_stored_layers_are_numbered_through(runs: tuple[Path, Path]) -> None:
    """All stages' layers of a specialist are one tensor on the disk, moments included, as one rank writes them."""
    parts, one = (RunDirectory(run) for run in runs)
    expected = stored_shapes(one.step_directory("joint", 6) / "weights")
    for end, *_ in PARTS:
        shapes = stored_shapes(parts.step_directory("joint", end) / "weights")
        for name, depth in DEPTHS.items():
            key = f"specialists.{name}.decoder.layers.mlp.linear_fc2.weight"
            for of in ("", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq."):
                assert shapes[of + key][0] == depth
        del shapes["random_state"]
        assert shapes == {key: shape for key, shape in expected.items() if key != "random_state"}
