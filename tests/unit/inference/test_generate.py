"""What `megafuser generate` prints, with a tokenizer of which a text by itself loses its first blank."""

import dataclasses
from contextlib import contextmanager

import pytest

from megafuser.fusion.model import FusedModel
from megafuser.inference import generate
from megafuser.inference.generate import Options, run_generate
from megafuser.inference.open_model import FusedLanguageModel, Opening
from megafuser.inference.prompts import Ids, Message, PromptEncoder
from megafuser.inference.request import Call, Request
from megafuser.inference.sampling import SamplingParameters
from megafuser.inference.scheduler import Scheduler
from tests.fused_case import SPECIALISTS
from tests.tiny_models import SHARED_VOCABULARY
from tests.unit.inference.case import END, LIMIT, make_engine
from tests.unit.inference.test_text import make_llama_tokenizer

OPTIONS = Options(
    prompt="c ab",
    file=None,
    out=None,
    overwrite=False,
    raw=True,
    system=None,
    max_new_tokens=1,
    sampling=SamplingParameters(),
    stop=(),
    show_gate=False,
    max_running=1,
)


@pytest.fixture()
def model(fused: FusedModel) -> FusedLanguageModel:
    """All specialists with a Llama's tokenizer, which has as many ids as they share, the rest of them words."""
    tokenizer = make_llama_tokenizer(words=SHARED_VOCABULARY - len(make_llama_tokenizer()))
    prompts = PromptEncoder(
        dict.fromkeys(SPECIALISTS, tokenizer),
        ["alpaca"] * len(SPECIALISTS),
        shared_vocabulary=SHARED_VOCABULARY,
        end_id=END,
        rows=[SHARED_VOCABULARY] * len(SPECIALISTS),
    )
    return FusedLanguageModel(
        name="run/joint/step_000001",
        specialists=tuple(SPECIALISTS),
        engine=make_engine(fused),
        prompts=prompts,
        tokenizer=tokenizer,
        end_id=END,
        shared_vocabulary=SHARED_VOCABULARY,
        limit=LIMIT,
        config=None,  # type: ignore[arg-type]  # not read
    )


def response(model: FusedLanguageModel, prompts: Ids, sampling: SamplingParameters) -> list[int]:
    request = Request(Call(prompts, 1, sampling), tokenizer=model.tokenizer, end_id=END)
    scheduler = Scheduler(model.engine, max_running=1)
    scheduler.add(request)
    scheduler.run()
    return request.response


@pytest.mark.parametrize("raw", [True, False])
def test_a_raw_answer_goes_on_with_the_prompt_and_a_template_s_is_a_text_by_itself(model, monkeypatch, capsys, raw):
    @contextmanager
    def opened(_: Opening):
        yield model

    monkeypatch.setattr(generate, "open_checkpoint", opened)
    prompts = model.prompts.raw("c ab", 3) if raw else model.prompts.chat([Message("user", "c ab")])
    before = prompts[0] if raw else ()
    blanks = 0
    for seed in range(30):
        sampling = SamplingParameters(temperature=1.0, seed=seed)
        ids = response(model, prompts, sampling)
        assert run_generate(Opening("none"), dataclasses.replace(OPTIONS, sampling=sampling, raw=raw)) == 0
        whole = model.tokenizer.decode([*before, *ids], skip_special_tokens=True)
        printed = capsys.readouterr().out
        assert printed == whole.removeprefix("c ab" if raw else "") + "\n"
        blanks += printed.startswith(" w")
    assert blanks > 2 if raw else blanks == 0
