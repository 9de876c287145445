"""Requests that come and go between steps: each gets what it would have got alone, and gives its place back."""

import pytest

from megafuser.errors import UserError
from megafuser.inference.cache import Extents, bytes_per_position
from megafuser.inference.prompts import Message
from megafuser.inference.request import Call, Finish, Request
from megafuser.inference.sampling import SamplingParameters
from megafuser.inference.scheduler import Scheduler
from tests.unit.inference.case import END, LIMIT, make_engine

TEXTS = ("What is the sum of three and four?", "print(i)", "The quick brown fox. " * 4, "[INST]", "seven eight nine")


@pytest.fixture()
def case(fused, encoder, dense):
    return fused, make_engine(fused), encoder, dense


def request(encoder, prompts, **settings):
    return Request(Call(prompts=prompts, **{"max_tokens": 12} | settings), tokenizer=encoder.tokenizer, end_id=END)


@pytest.mark.parametrize(("max_running", "step_positions"), [(1, 512), (8, 512), (3, 16), (8, 5)])
def test_greedy_responses_do_not_depend_on_the_batch(case, max_running, step_positions):
    _, engine, encoder, dense = case
    prompts = [encoder.chat([Message("user", text)]) for text in TEXTS]
    requests = [request(encoder, own, max_tokens=4 + 3 * index) for index, own in enumerate(prompts)]
    scheduler = Scheduler(engine, max_running=max_running, step_positions=step_positions)
    scheduler.add(requests[0])
    scheduler.step()
    for late in requests[1:]:
        scheduler.add(late)
    scheduler.run()
    for own, done in zip(prompts, requests, strict=True):
        expected = dense.greedy(own, done.call.max_tokens)
        assert done.response == expected
        assert done.finish is (Finish.STOP if expected[-1] == END else Finish.LENGTH)
        text = [token for token in expected if token != END]
        assert done.text.text == encoder.tokenizer.decode(text, skip_special_tokens=True)
    assert engine.extents.free == engine.extents.capacity


def test_draws_depend_on_the_seed_alone(case):
    _, engine, encoder, _ = case
    prompts = [encoder.chat([Message("user", text)]) for text in TEXTS]

    def responses(max_running, seed=7):
        own = [
            request(encoder, one, sampling=SamplingParameters(temperature=1.0, top_p=0.95, top_k=50, seed=seed))
            for one in prompts
        ]
        scheduler = Scheduler(engine, max_running=max_running)
        for one in own:
            scheduler.add(one)
        scheduler.run()
        return [one.response for one in own]

    alone, together, other = responses(1), responses(8), responses(8, seed=8)
    assert alone == together
    assert alone != other


def test_an_echo_scores_every_token_of_the_prompt(case):
    _, engine, encoder, dense = case
    prompts = encoder.raw("The quick brown fox jumps over", 3)
    logits, _ = dense.logits(prompts, len(prompts[0]))
    expected = logits.log_softmax(dim=-1)[range(len(prompts[0]) - 1), prompts[0][1:]].tolist()
    for max_tokens, step_positions in ((0, 512), (3, 512), (2, 4)):
        own = request(encoder, prompts, max_tokens=max_tokens, echo=True)
        scheduler = Scheduler(engine, max_running=1, step_positions=step_positions)
        scheduler.add(own)
        scheduler.run()
        assert [one.token for one in own.echoed] == list(prompts[0][1:])
        assert [one.logprob for one in own.echoed] == pytest.approx(expected, abs=1e-4)
        assert own.response == dense.greedy(prompts, max_tokens)
        assert own.finish is not None
    assert engine.extents.free == engine.extents.capacity


def test_a_stop_string_ends_the_response_before_it(case):
    _, engine, encoder, dense = case
    prompts = encoder.chat([Message("user", TEXTS[0])])
    whole = encoder.tokenizer.decode([t for t in dense.greedy(prompts, 12) if t != END])
    stop = whole[5:7]
    own = request(encoder, prompts, stop=(stop,))
    scheduler = Scheduler(engine, max_running=1)
    scheduler.add(own)
    scheduler.run()
    assert own.text.text == whole[: whole.index(stop)]
    assert own.finish is Finish.STOP


def test_what_cannot_ever_fit_is_refused(case):
    model, engine, encoder, _ = case
    prompts = encoder.raw("a" * 10, 3)
    scheduler = Scheduler(engine, max_running=1)
    with pytest.raises(UserError, match=rf"the context has {LIMIT}"):
        scheduler.add(request(encoder, prompts, max_tokens=LIMIT))
    room = LIMIT - len(prompts[0])  # prompt and response count, though the last token is never read
    with pytest.raises(UserError, match=rf"the prompt has {len(prompts[0])} tokens, and up to {room + 1} more"):
        scheduler.check(request(encoder, prompts, max_tokens=room + 1))
    scheduler.check(request(encoder, prompts, max_tokens=room))
    scheduler.check(request(encoder, encoder.raw_ids([5] * LIMIT, 3), max_tokens=0, echo=True))
    small = make_engine(model, cache_bytes=100_000)
    assert small.extents.capacity < LIMIT
    with pytest.raises(UserError, match=f"the caches have {small.extents.capacity}"):
        Scheduler(small, max_running=1).add(request(encoder, prompts, max_tokens=LIMIT - 50))


def test_requests_wait_for_a_place_and_cancelled_ones_leave(case):
    model, _, encoder, _ = case
    prompts = encoder.raw("The quick brown fox", 3)
    positions = len(prompts[0]) + 11
    engine = make_engine(model, cache_bytes=bytes_per_position(model) * (2 * positions + 3))
    scheduler = Scheduler(engine, max_running=8)
    own = [request(encoder, prompts, ignores_end=True) for _ in range(5)]
    for one in own:
        scheduler.add(one)
    scheduler.step()
    assert len(scheduler.running) == 2
    assert len(scheduler.waiting) == 3
    own[0].cancel()  # one that runs
    own[3].cancel()  # one that waits
    scheduler.run()
    assert [one.finish for one in own] == [
        Finish.CANCELLED, Finish.LENGTH, Finish.LENGTH, Finish.CANCELLED, Finish.LENGTH,
    ]  # fmt: skip
    assert own[1].response == own[2].response == own[4].response
    assert engine.extents.free == engine.extents.capacity


@pytest.mark.parametrize(("max_running", "step_positions"), [(2, 512), (4, 16), (8, 5)])
def test_a_step_keeps_to_its_limits(case, monkeypatch, max_running, step_positions):
    _, engine, encoder, _ = case
    scheduler = Scheduler(engine, max_running=max_running, step_positions=step_positions)
    step, sizes = engine.step, []

    def seen(asks):
        sizes.append([max(map(len, ask.ids)) for ask in asks])
        return step(asks)

    monkeypatch.setattr(engine, "step", seen)
    for text in TEXTS:
        for length in (3, 6):
            scheduler.add(request(encoder, encoder.raw(text, 3), max_tokens=length))
    scheduler.run()
    assert max(map(len, sizes)) <= max_running
    if step_positions > max_running:
        assert max(map(len, sizes)) == max_running
    for step_sizes in sizes:
        decoding = step_sizes.count(1)  # or reading the last one of a prompt
        assert sum(step_sizes) <= max(step_positions, decoding + 1)


def test_nobody_overtakes_who_waits_for_room(case):
    model, _, encoder, _ = case
    prompts = encoder.raw("fox", 3)
    engine = make_engine(model, cache_bytes=bytes_per_position(model) * 50)
    scheduler = Scheduler(engine, max_running=8)
    first, large, small = own = [
        request(encoder, prompts, max_tokens=positions - len(prompts[0]) + 1, ignores_end=True)
        for positions in (30, 40, 10)
    ]
    for one in own:
        scheduler.add(one)
    scheduler.step()
    assert scheduler.running == [first]  # there would be room for the small one
    assert list(scheduler.waiting) == [large, small]
    scheduler.run()
    assert [one.finish for one in own] == [Finish.LENGTH] * 3


def test_extents_join_again():
    extents = Extents(100)
    starts = [extents.take(25) for _ in range(4)]
    assert starts == [0, 25, 50, 75]
    assert extents.take(1) is None
    extents.give_back(25)
    extents.give_back(75)
    assert extents.free == 50
    assert extents.take(26) is None  # two holes are not one
    extents.give_back(50)
    assert extents.take(75) == 25
    with pytest.raises(KeyError):
        extents.give_back(3)
