"""One set of specialists for all tests of this directory."""

from pathlib import Path

import pytest

from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.runtime.distributed import single_process_cpu
from tests.fused_case import make_hf_specialists


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three converted specialists: other θ, other vocabularies, other heads."""
    directory = tmp_path_factory.mktemp("decoded")
    for name, hf in make_hf_specialists(directory).items():
        import_specialist(hf, directory / "mcore" / name, verify="none")
    return directory


@pytest.fixture()
def process_group():
    """One rank on the CPU."""
    with single_process_cpu():
        yield
