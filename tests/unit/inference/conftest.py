"""One set of specialists for all tests that decode, and for each module one model of them, which no test changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megafuser.fusion.model import FusedModel
from megafuser.inference.prompts import PromptEncoder
from megafuser.runtime.distributed import single_process_cpu
from tests.unit.inference.case import Dense, build, converted_specialists, make_prompts


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three converted specialists: other θ, other vocabularies, other heads."""
    return converted_specialists(tmp_path_factory)


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """One rank on the CPU."""
    with single_process_cpu():
        yield


@pytest.fixture(scope="module")
def fused(root: Path, process_group: None) -> FusedModel:
    """The weights; caches, and what else a test changes, are an engine's, and each test makes its own."""
    return build(root)


@pytest.fixture(scope="module")
def dense(root: Path, fused: FusedModel) -> Dense:
    """What the model must say."""
    return Dense(root, fused)


@pytest.fixture(scope="module")
def encoder(root: Path) -> PromptEncoder:
    """What makes ids."""
    return make_prompts(root)
