"""Every kind of request against the harness's own Hugging Face model, and through templates against training's ids."""

import json

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.errors import UserError
from megafuser.harness.answers import Answers
from megafuser.harness.generation import parse_generation
from megafuser.harness.language_model import FusedLM
from megafuser.inference.request import Request
from tests.fused_case import SPECIALISTS
from tests.reference import PROMPTS
from tests.unit.inference.case import LIMIT, Dense

LONG = "the quick brown fox jumps over the lazy dog and returns " * 40
PAIRS = [
    ("What is the sum of three and four?", " seven"),
    ("What is the sum of three and four?", " eight"),
    ("What is the sum of three and four? ", "seven"),
    ("def add(a, b):\n", "    return a + b"),
    ("", "The quick brown fox"),
    ("", "<s>The fox"),
    ("<s>[INST] One two", " three"),
    (" ", "three"),
    (LONG, " dog"),
    ("One", LONG[:250]),
]
TEXTS = ["The quick brown fox.", "<s>The quick", LONG, "x"]
GENERATIONS = [
    ("What is the sum?", {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False}),
    ("What is the sum?", {"until": [], "max_gen_toks": 16, "temperature": 0.0}),
    ("def add(a, b):", {"until": ["a", "e", "o"], "max_gen_toks": 24}),
    ("<s>One", {"until": "q", "max_new_tokens": 12}),
    (LONG, {"until": ["\n"], "max_gen_toks": 20}),
]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=own, idx=index) for index, own in enumerate(arguments)]


@pytest.fixture()
def fused(model):
    return FusedLM(model, Answers(None, {}), raw=True, max_running=4)


@pytest.fixture(scope="module")
def huggingface(root):
    """The specialist that has no row beyond the shared ones, so that its softmax is over the same ids."""
    directory = root / "hf" / "text"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(directory), batch_size=1)


def test_log_likelihoods_are_the_harness_own_models(model, fused, huggingface):
    model.engine.force([1, 0, 0])
    found = fused.loglikelihood(requests("loglikelihood", PAIRS))
    expected = huggingface.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4, rel=1e-6)
    assert [one[1] for one in found] == [one[1] for one in expected]
    assert len({round(one[0], 3) for one in found}) > 7


def test_rolling_log_likelihoods_are_the_harness_own_models(model, fused, huggingface):
    model.engine.force([1, 0, 0])
    arguments = [(text,) for text in TEXTS]
    found = fused.loglikelihood_rolling(requests("loglikelihood_rolling", arguments))
    expected = huggingface.loglikelihood_rolling(requests("loglikelihood_rolling", arguments), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-6)


def test_texts_are_the_harness_own_models(model, fused, huggingface):
    model.engine.force([1, 0, 0])
    found = fused.generate_until(requests("generate_until", GENERATIONS))
    assert found == huggingface.generate_until(requests("generate_until", GENERATIONS), disable_tqdm=True)
    assert len(set(found)) > 3


def test_a_forced_weight_matters_and_can_be_taken_back(model):
    def loglikelihood() -> float:
        lm = FusedLM(model, Answers(None, {}), raw=True, max_running=4)
        return lm.loglikelihood(requests("loglikelihood", PAIRS[:1]))[0][0]

    gate = loglikelihood()
    found = []
    for weights in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3] * 3):
        model.engine.force(weights)
        found.append(loglikelihood())
    model.engine.force(None)
    assert loglikelihood() == pytest.approx(gate, abs=1e-5)
    assert len({round(one, 4) for one in [*found, gate]}) == 5


def test_contexts_go_through_each_template(model, weights, root):
    """Against Hugging Face's models on ids that are made here, from the templates' texts."""
    lm = FusedLM(model, Answers(None, {}), raw=False, max_running=4)
    question, response = "What is the sum of three and four?", " It is seven."
    tokenizers = {name: AutoTokenizer.from_pretrained(root / "hf" / name) for name in SPECIALISTS}
    views = [tokenizers[name](PROMPTS[name].format(instruction=question)).input_ids for name in SPECIALISTS]
    ids = tokenizers["text"]("It is seven.", add_special_tokens=False).input_ids
    dense = Dense(root, weights)
    logits, _ = dense.logits([[*view, *ids[:-1]] for view in views], len(ids))
    expected = logits.log_softmax(dim=-1)[range(len(ids)), ids].sum()
    (found,) = lm.loglikelihood(requests("loglikelihood", [(question, response)]))
    assert found[0] == pytest.approx(float(expected), abs=1e-4)
    greedy = dense.greedy(tuple(map(tuple, views)), 8)
    (text,) = lm.generate_until(requests("generate_until", [(question, {"until": [], "max_gen_toks": 8})]))
    assert text == tokenizers["text"].decode(greedy, skip_special_tokens=True)


def test_a_long_message_loses_its_beginning_and_the_template_nothing(model, caplog, monkeypatch):
    caplog.set_level("WARNING")
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    lm = FusedLM(model, Answers(None, {}), raw=False, max_running=4)
    pair = lm._templated.pair("First words. " + LONG + "Last words?", " yes")
    texts = [tokenizer.decode(own) for tokenizer, own in zip([model.tokenizer] * 3, pair.context, strict=True)]
    assert max(map(len, pair.context)) + len(pair.ids) <= LIMIT + 1
    assert max(map(len, pair.context)) + len(pair.ids) > LIMIT - 8
    for text, (before, after) in zip(texts, (PROMPTS[n].split("{instruction}") for n in SPECIALISTS), strict=True):
        assert before.removeprefix("<s>") in text
        assert text.endswith("Last words?" + after)
        assert "First words" not in text
    prompt = lm._templated.prompt(LONG, 30)
    assert LIMIT - 38 < max(map(len, prompt)) <= LIMIT - 30
    assert lm._templated.cut == 2
    with pytest.raises(UserError, match="smaller max_gen_toks"):
        lm._templated.prompt(LONG, LIMIT - 1)


def test_what_was_cut_is_told(fused, monkeypatch):
    told: list[tuple] = []
    monkeypatch.setattr("megafuser.harness.language_model.logger.warning", lambda *own: told.append(own))
    lost = "%d requests were longer than the context window of"
    for ask, arguments in (
        (fused.loglikelihood, [(LONG, " dog"), (LONG, " fox"), ("One", " two")]),
        (fused.generate_until, [(LONG, {"until": [], "max_gen_toks": 2}), ("One", {"until": [], "max_gen_toks": 2})]),
    ):
        told.clear()
        ask(requests("any", arguments))
        ((text, count, _),) = told
        assert text.startswith(lost)
        assert count == len(arguments) - 1


def test_a_temperature_without_draws_is_greedy():
    values = {"until": [], "do_sample": False, "temperature": 0.7}
    assert parse_generation(values, end=None).sampling.temperature == 0.0
    assert parse_generation(values | {"do_sample": True}, end=None).sampling.temperature == 0.7


def test_answers_outlive_the_process(model, tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    drawn = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5}
    asked = [("What?", drawn)] * 2 + GENERATIONS[:2]
    with Answers(path, {"model": 1}) as answers:
        lm = FusedLM(model, answers, raw=False, max_running=4)
        first = lm.generate_until(requests("generate_until", asked))
        pairs = lm.loglikelihood(requests("loglikelihood", PAIRS[:3]))
    assert first[0] != first[1], "two draws of one request"
    with path.open("a") as file:
        file.write('{"key": "half a li')
    monkeypatch.setattr(model.engine, "step", None)  # nothing is computed again
    with Answers(path, {"model": 1}) as answers:
        lm = FusedLM(model, answers, raw=False, max_running=4)
        assert lm.generate_until(requests("generate_until", asked)) == first
        assert lm.loglikelihood(requests("loglikelihood", PAIRS[:3])) == pairs
        answers["more"] = "ünd"
    assert [json.loads(line)["answer"] for line in path.read_text("utf-8").splitlines()][-1] == "ünd"
    with Answers(path, {"model": 2}) as answers, pytest.raises(TypeError):
        lm = FusedLM(model, answers, raw=False, max_running=4)
        lm.loglikelihood(requests("loglikelihood", PAIRS[:1]))


def test_each_request_draws_anew(model, monkeypatch):
    """Equal seeds would make the draws of different questions the same ones."""
    calls = []
    original = Request.__init__

    def keep(self, call, **options):
        calls.append(call)
        original(self, call, **options)

    monkeypatch.setattr(Request, "__init__", keep)
    drawn = {"until": [], "max_gen_toks": 2, "do_sample": True, "temperature": 1.0}
    asked = [("One?", drawn), ("Two?", drawn), ("One?", drawn), ("One?", drawn | {"temperature": 0.5})]
    for _ in range(2):
        FusedLM(model, Answers(None, {}), raw=True, max_running=4).generate_until(requests("generate_until", asked))
    seeds = [call.sampling.seed for call in calls]
    assert seeds[:4] == seeds[4:]
    assert len(set(seeds)) == 4
    calls.clear()
    greedy = {"until": [], "max_gen_toks": 2}
    lm = FusedLM(model, Answers(None, {}), raw=True, max_running=4)
    assert len(lm.generate_until(requests("generate_until", [("One?", greedy)] * 3))) == 3
    assert len(calls) == 1, "one answer is all there is"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "num_beams: 4 has no meaning here"),
        ({"max_gen_toks": 0}, "at least 1"),
        ({"max_gen_toks": LIMIT}, "give the task a smaller one"),
        ({"do_sample": True}, "temperature above 0"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 3}, "top_p"),
        ({"temperature": "warm"}, "could not convert"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fused, settings, message):
    with pytest.raises(UserError, match=message):
        fused.generate_until(requests("generate_until", [("What?", {"until": []} | settings)]))


@pytest.mark.parametrize("raw", [True, False])
def test_requests_without_tokens_are_refused(model, raw):
    fused = FusedLM(model, Answers(None, {}), raw=raw, max_running=4)
    for pair in (("One", ""), ("", "")):
        with pytest.raises(UserError, match="no tokens"):
            fused.loglikelihood(requests("loglikelihood", [pair]))
    with pytest.raises(UserError, match="context window"):
        fused.loglikelihood(requests("loglikelihood", [("One", LONG)]))
