"""One set of specialists for all tests that decode, and for each module one model of them, which no test changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megafuser.fusion.model import FusedModel
from megafuser.inference.open_model import FusedLanguageModel
from megafuser.inference.prompts import PromptEncoder
from megafuser.runtime.distributed import single_process_cpu
from tests.fused_case import SPECIALISTS
from tests.tiny_models import SHARED_VOCABULARY
from tests.unit.inference.case import END, LIMIT, build, converted_specialists, make_engine, make_prompts


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three converted specialists: other θ, other vocabularies, other heads."""
    return converted_specialists(tmp_path_factory)


@pytest.fixture(scope="module")
def weights(root: Path) -> Iterator[FusedModel]:
    """The specialists and the gate."""
    with single_process_cpu():
        yield build(root)


@pytest.fixture(scope="module")
def prompts(root: Path) -> PromptEncoder:
    """What makes ids."""
    return make_prompts(root)


@pytest.fixture()
def model(weights: FusedModel, prompts: PromptEncoder) -> FusedLanguageModel:
    """An open fused model, whose gate may be forced: caches and weights of the mixture are each test's own."""
    return FusedLanguageModel(
        name="tiny",
        specialists=tuple(SPECIALISTS),
        engine=make_engine(weights),
        prompts=prompts,
        tokenizer=prompts.tokenizer,
        end_id=END,
        shared_vocabulary=SHARED_VOCABULARY,
        limit=LIMIT,
        config=None,  # type: ignore[arg-type]
    )
