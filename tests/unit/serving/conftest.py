"""One set of specialists, and for each module one open model and one server."""

from pathlib import Path

import pytest

from megafuser.inference.open_model import FusedLanguageModel
from megafuser.runtime.distributed import single_process_cpu
from tests.tiny_models import make_tokenizer
from tests.unit.data.test_control_tokens import byte_level, sentencepiece
from tests.unit.inference.case import converted_specialists
from tests.unit.serving.case import open_model, running_server


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three converted specialists."""
    return converted_specialists(tmp_path_factory)


@pytest.fixture(scope="module")
def model(root: Path):
    """An open model, used by one server at a time."""
    with single_process_cpu():
        yield open_model(root)


@pytest.fixture(scope="module")
def server(model: FusedLanguageModel):
    """A server without a key."""
    with running_server(model) as running:
        yield running


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "tiny": make_tokenizer(root / "tiny", 3),
        "byte-level": byte_level(root / "byte-level"),
        "sentencepiece": sentencepiece(root / "sentencepiece"),
    }
