"""The case of all training tests: made once, each test runs into a directory of its own."""

from pathlib import Path

import pytest

from tests.unit.training.small_run import SmallRun, make_small_case


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Specialists, data and `config.yaml`; not to be changed by a test."""
    return make_small_case(tmp_path_factory.mktemp("training"))


@pytest.fixture
def run(case: Path, tmp_path: Path) -> SmallRun:
    """A run of that case that has not begun."""
    return SmallRun(case / "config.yaml", tmp_path / "run")


@pytest.fixture(scope="session")
def finished(case: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Both stages done; not to be changed by a test, see `SmallRun.copy`."""
    run = SmallRun(case / "config.yaml", tmp_path_factory.mktemp("finished") / "run")
    assert run.stage("warmup") == 0
    assert run.stage("joint") == 0
    return run
