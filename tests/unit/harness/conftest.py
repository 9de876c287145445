"""One set of specialists for all tests of this directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.inference.open_model import FusedLanguageModel
from megafuser.runtime.distributed import single_process_cpu
from tests.fused_case import SPECIALISTS, make_hf_specialists
from tests.tiny_models import SHARED_VOCABULARY
from tests.unit.inference.case import END, LIMIT, build, make_engine, make_prompts


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three converted specialists: other θ, other vocabularies, other heads."""
    directory = tmp_path_factory.mktemp("harness")
    for name, hf in make_hf_specialists(directory).items():
        import_specialist(hf, directory / "mcore" / name, verify="none")
    return directory


@pytest.fixture()
def model(root: Path) -> Iterator[FusedLanguageModel]:
    """An open fused model, whose gate may be forced."""
    with single_process_cpu():
        prompts = make_prompts(root)
        yield FusedLanguageModel(
            name="tiny",
            specialists=tuple(SPECIALISTS),
            engine=make_engine(build(root)),
            prompts=prompts,
            tokenizer=prompts.tokenizer,
            end_id=END,
            shared_vocabulary=SHARED_VOCABULARY,
            limit=LIMIT,
            config=None,  # type: ignore[arg-type]
        )
