"""The formulas that silently spoil a model when they are wrong: each is broken in a copy, where the tests must notice.

Slow, and alone in this: it tests the tests. A line that was rewritten is to be found again here.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("megafuser", "tests", "tools", "examples", "docs", "pyproject.toml", "setup.py", "constraints.txt")


@dataclass(frozen=True)
class Mutation:
    """A line of a file, what is made of it, and the test that guards it."""

    name: str
    file: str
    line: str
    broken: str
    guard: str


MUTATIONS = (
    Mutation(
        "the gate's temperature multiplies",
        "megafuser/fusion/gate.py",
        "torch.softmax(scores / self.temperature, dim=-1)",
        "torch.softmax(scores * self.temperature, dim=-1)",
        "tests/unit/fusion/test_gate.py",
    ),
    Mutation(
        "the largest logit is taken off twice",
        "megafuser/fusion/vocabulary_parallel.py",
        "return sums[0].log() + largest - sums[1]",
        "return sums[0].log() - largest - sums[1]",
        "tests/unit/fusion/test_mixture_loss.py",
    ),
    Mutation(
        "the gradient of the logits is p + onehot",
        "megafuser/fusion/vocabulary_parallel.py",
        "gradient.scatter_add_(1, local[:, None], -own[:, None].float())",
        "gradient.scatter_add_(1, local[:, None], own[:, None].float())",
        "tests/unit/fusion/test_mixture_loss.py",
    ),
    Mutation(
        "the position after the predicting one meets the head",
        "megafuser/data/tokenized.py",
        "start = length + len(prompt) - 1",
        "start = length + len(prompt)",
        "tests/unit/data/test_row_building.py",
    ),
    Mutation(
        "gradients are not divided by the step's tokens",
        "megafuser/training/gradients.py",
        "chunk.scale_gradients(1.0 / total.item())",
        "chunk.scale_gradients(1.0)",
        "tests/unit/training/test_engine.py",
    ),
    Mutation(
        "the load-balance gradient lacks its 2",
        "megafuser/training/load_balance.py",
        "return (2.0 * coefficient * len(means) * means).float()",
        "return (coefficient * len(means) * means).float()",
        "tests/unit/fusion/test_model.py",
    ),
    Mutation(
        "llama3's scaling divides the other frequencies",
        "megafuser/specialist/rotary.py",
        "return (1 - kept) * frequencies / scaling.factor + kept * frequencies",
        "return kept * frequencies / scaling.factor + (1 - kept) * frequencies",
        "tests/unit/specialist/test_rotary.py",
    ),
    Mutation(
        "the norm's backward has the wrong sign",
        "megafuser/specialist/norm.py",
        ".mul_(inverse**3).div_(-width)",
        ".mul_(inverse**3).div_(width)",
        "tests/unit/specialist/test_norm.py",
    ),
    Mutation(
        "keys and values change places",
        "megafuser/families/weight_mapping.py",
        "yield RowRange(1, group * width, (group + 1) * width)",
        "yield RowRange(2, group * width, (group + 1) * width)",
        "tests/unit/families/test_weight_mapping.py",
    ),
    Mutation(
        "a cached step sees one key too few",
        "megafuser/inference/cached_row.py",
        "own = slice(start, start + past + new)",
        "own = slice(start, start + past + new - 1)",
        "tests/unit/inference/test_engine.py",
    ),
    Mutation(
        "a report's means are sums",
        "megafuser/report/scores.py",
        "means = [value / tokens for value in values]",
        "means = [value for value in values]",
        "tests/unit/report/test_scores.py",
    ),
    Mutation(
        "an interval has twice its tails",
        "megafuser/report/bootstrap.py",
        "tail = 50 * (1 - LEVEL)",
        "tail = 100 * (1 - LEVEL)",
        "tests/unit/report/test_comparison.py",
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guards need of this repository; they pass there as long as nothing is broken."""
    directory = tmp_path_factory.mktemp("copy")
    generated = shutil.ignore_patterns("__pycache__", "out")
    for name in COPIED:
        source, target = ROOT / name, directory / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=generated)
        else:
            shutil.copy(source, target)
    assert run(directory, *sorted({mutation.guard for mutation in MUTATIONS})) == pytest.ExitCode.OK
    return directory


def run(directory: Path, *guards: str) -> int:
    """The exit code of pytest on some files of a copy."""
    # the copy's package, not the one that is installed
    environment = os.environ | {"PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", *guards]
    return subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_formula_is_noticed(mutation: Mutation, copy: Path) -> None:
    file = copy / mutation.file
    right = file.read_text()
    assert right.count(mutation.line) == 1, f"{mutation.file} no longer has one line {mutation.line!r}"
    file.write_text(right.replace(mutation.line, mutation.broken))
    try:
        assert run(copy, mutation.guard) == pytest.ExitCode.TESTS_FAILED
    finally:
        file.write_text(right)
