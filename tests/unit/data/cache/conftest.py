"""Tokenizers of two specialists, the second with tokens of its own."""

from typing import Any

import pytest

from megafuser.data.tokenization import load_tokenizers
from tests.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("tokenizers")
    for name, extra in (("text", 0), ("code", 16)):
        make_tokenizer(root / name, extra)
    return load_tokenizers({name: root / name for name in ("text", "code")})
