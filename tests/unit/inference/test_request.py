"""A request hands to each draw what it depends on: its logits, its context, its number."""

import pytest

from megafuser.inference.prompts import Message
from megafuser.inference.request import Call, Finish, Request
from megafuser.inference.sampling import SamplingParameters, choose
from megafuser.inference.scheduler import Scheduler
from tests.unit.inference.case import END, make_engine


@pytest.fixture()
def case(fused, encoder, dense):
    return make_engine(fused), encoder, dense


def run(engine, encoder, call, on_token=None):
    request = Request(call, tokenizer=encoder.tokenizer, end_id=END, on_token=on_token)
    scheduler = Scheduler(engine, max_running=1, step_positions=40)
    scheduler.add(request)
    scheduler.run()
    return request


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.0}, {"repetition_penalty": 1.0, "presence_penalty": 0.0}, {"top_p": 0.5, "top_k": 9}],
)
def test_each_token_is_chosen_by_logits_context_and_number(case, settings):
    engine, encoder, dense = case
    prompts = encoder.chat([Message("user", "seven eight nine")])
    parameters = SamplingParameters(
        **{"temperature": 1.2, "repetition_penalty": 1.6, "presence_penalty": 1.5, "seed": 9} | settings
    )
    found = run(engine, encoder, Call(prompts, max_tokens=14, sampling=parameters, ignores_end=True))
    response: list[int] = []
    while len(response) < 14:
        logits, _ = dense.logits([[*prompt, *response] for prompt in prompts], 1)
        response.append(choose(logits[0].float(), parameters, prompts[0], response, len(response)))
        # probabilities are the fused distribution's, whatever was done to draw from it
        expected = float(logits[0].log_softmax(dim=-1)[response[-1]])
        assert found.predictions[len(response) - 1].logprob == pytest.approx(expected, abs=1e-4)
    assert found.response == response
    assert found.finish is Finish.LENGTH


def test_the_last_token_may_complete_a_stop_string(case):
    engine, encoder, dense = case
    prompts = encoder.chat([Message("user", "What is the sum of three and four?")])
    ids = dense.greedy(prompts, 12)
    texts = {count: encoder.tokenizer.decode(ids[:count]) for count in range(2, len(ids))}
    texts = {count: text for count, text in texts.items() if "\ufffd" not in text[-2:] and END not in ids[:count]}
    assert texts
    for count, text in texts.items():
        shown: list[str] = []
        call = Call(prompts, max_tokens=count, stop=(text[-1:] + "never", text[-2:]))
        found = run(engine, encoder, call, lambda _, piece, shown=shown: shown.append(piece))
        assert found.finish is Finish.STOP
        assert "".join(shown) == found.text.text == text[: text.index(text[-2:])]


def test_a_request_takes_as_many_positions_as_it_reads(case, monkeypatch):
    """One fewer, and its last token would be written into its neighbour's."""
    engine, encoder, _ = case
    read: list[int] = []
    original = engine.step

    def step(asks):
        read.extend(past + len(ids) for ask in asks for past, ids in zip(ask.past, ask.ids, strict=True))
        return original(asks)

    monkeypatch.setattr(engine, "step", step)
    for prompts, echo, most in (
        (encoder.chat([Message("user", "seven")]), False, 1),
        (encoder.chat([Message("user", "seven")]), False, 6),
        (encoder.raw("seven eight", 3), True, 0),
        (encoder.raw("seven eight", 3), True, 3),
    ):
        read.clear()
        call = Call(prompts, max_tokens=most, echo=echo, ignores_end=True)
        run(engine, encoder, call)
        assert max(read) == call.positions
