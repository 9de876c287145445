"""Steps against Hugging Face's forward without any cache: logits, weights, chunks, batches, and caches used again."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from megafuser.fusion.vocabulary_parallel import VocabularyChunk
from megafuser.inference import cached_row, predict
from megafuser.inference.cache import bytes_per_position
from megafuser.inference.engine import Engine
from megafuser.inference.prompts import Ids, Message, PromptEncoder
from megafuser.inference.sampling import SamplingParameters
from megafuser.inference.step_messages import Ask
from tests.unit.inference.case import ask_for_logits, make_engine

TOLERANCE = 1e-4
TEXTS = ("What is the sum of three and four?", "print(i)", "The quick brown fox jumps over the lazy dog. " * 3)


@pytest.fixture(scope="module")
def prompts(encoder: PromptEncoder) -> list[Ids]:
    return [encoder.chat([Message("user", text)]) for text in TEXTS]


def logits_of(found: Sequence) -> torch.Tensor:
    return torch.tensor([prediction.logits for prediction in found], dtype=torch.float64)


def weights_of(found: Sequence) -> torch.Tensor:
    return torch.tensor([prediction.gate for prediction in found], dtype=torch.float64)


def score_in_chunks(engine: Engine, prompts: Ids, response: Sequence[int], chunk: int) -> list:
    """Reads K prompts in chunks aligned on the right, then the response token by token; predictions of its tokens."""
    whole = max(map(len, prompts))
    start = engine.extents.take(whole + len(response))
    assert start is not None
    for first in range(0, whole, chunk):
        parts, past = [], []
        for prompt in prompts:
            missing = whole - len(prompt)
            begin, end = max(first - missing, 0), max(min(first + chunk, whole) - missing, 0)
            parts.append(prompt[begin:end])
            past.append(begin)
        is_last = first + chunk >= whole
        (found,) = engine.step([ask_for_logits(start, past, parts, response[:1] if is_last else ())])
    predictions = list(found)
    for index, token in enumerate(response[:-1]):
        past = [len(prompt) + index for prompt in prompts]
        (found,) = engine.step([ask_for_logits(start, past, [[token]] * len(prompts), response[index + 1 : index + 2])])
        predictions += found
    engine.extents.give_back(start)
    return predictions


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_cached_steps_say_what_a_forward_of_everything_says(fused, dense, prompts, chunk):
    engine = make_engine(fused)
    assert len({len(view) for view in prompts[0]}) == 3  # views of equal length would hide a misalignment
    for own in prompts:
        response = [7, 300, 12, 45, 2]
        found = score_in_chunks(engine, own, response, chunk)
        logits, weights = dense.logits([[*view, *response[:-1]] for view in own], len(response))
        torch.testing.assert_close(logits_of(found), logits, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(weights_of(found), weights, rtol=TOLERANCE, atol=TOLERANCE)
        expected = torch.log_softmax(logits, dim=-1)[torch.arange(len(response)), torch.tensor(response)]
        assert [p.logprob for p in found] == pytest.approx(expected.tolist(), abs=TOLERANCE)
        assert [p.is_greedy for p in found] == [int(z.argmax()) == t for z, t in zip(logits, response, strict=True)]
    assert engine.extents.free == engine.extents.capacity


@pytest.mark.parametrize("gathers", [False, True])
def test_what_shares_a_step_changes_nothing(fused, dense, prompts, monkeypatch, gathers):
    """Prompts and single tokens of different sequences in one row, places in the cache that were used before."""
    if gathers:  # as on a GPU
        original = cached_row.CachedSegments
        monkeypatch.setattr(cached_row, "CachedSegments", lambda **settings: original(**settings | {"gathers": True}))
    engine = make_engine(fused)
    for pool in engine._pools:  # what an earlier request left behind
        for tensor in (*pool.keys.values(), *pool.values.values()):
            tensor.fill_(3.0)
    starts = [engine.extents.take(max(map(len, own)) + 3) for own in prompts]
    reads = [Ask(start, (0, 0, 0), own, (), SamplingParameters()) for start, own in zip(starts, prompts, strict=True)]
    first, second = engine.step(reads[:2])
    tokens = [first[0].token, second[0].token]

    def one_more(index: int) -> Ask:
        past = tuple(len(view) for view in prompts[index])
        return Ask(starts[index], past, ((tokens[index],),) * 3, (), SamplingParameters(), with_logits=True)

    mixed = engine.step([one_more(0), reads[2], one_more(1)])
    for index, found in ((0, mixed[0]), (1, mixed[2])):
        logits, _ = dense.logits([[*view, tokens[index]] for view in prompts[index]], 1)
        torch.testing.assert_close(logits_of(found), logits, rtol=TOLERANCE, atol=TOLERANCE)
    logits, _ = dense.logits(prompts[2], 1)
    assert mixed[1][0].token == int(logits.argmax())


def test_forced_weights_are_one_specialist_alone(fused, dense, prompts):
    engine = make_engine(fused, forced=[0.0, 1.0, 0.0])
    start = engine.extents.take(max(map(len, prompts[0])))
    (found,) = engine.step([ask_for_logits(start, [0, 0, 0], prompts[0], [5])])
    code = dense._fusion.models["code"]
    alone = code(input_ids=torch.tensor([prompts[0][1]])).logits[0, -1:, :320].detach()
    torch.testing.assert_close(logits_of(found), alone, rtol=TOLERANCE, atol=TOLERANCE)
    assert found[0].gate == (0.0, 1.0, 0.0)


def test_the_most_probable_tokens_come_in_order(fused, prompts):
    engine = make_engine(fused)
    start = engine.extents.take(max(map(len, prompts[0])))
    (found,) = engine.step([Ask(start, (0, 0, 0), prompts[0], (5,), None, top=4, with_logits=True)])
    expected = torch.log_softmax(logits_of(found)[0], dim=-1).topk(4)
    assert [token for token, _ in found[0].top] == expected.indices.tolist()
    assert [logprob for _, logprob in found[0].top] == pytest.approx(expected.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 3])
def test_many_predictions_go_through_the_heads_in_parts(fused, dense, prompts, monkeypatch, at_once):
    engine = make_engine(fused)
    each = VocabularyChunk.bytes_per_token(engine._head.heads[0].shape[0], 3, torch.float32)
    monkeypatch.setattr(predict, "_CHUNK_BYTES", at_once * each)
    response = [7, 300, 12, 45, 2]
    asks = []
    for own, count in zip(prompts, (5, 2, 1), strict=True):
        start = engine.extents.take(max(map(len, own)) + count)
        views = [[*view, *response[: count - 1]] for view in own]
        ask = ask_for_logits(start, [0, 0, 0], views, response[:count])
        asks.append(dataclasses.replace(ask, top=count - 1))  # what one asks for is not the others'
    for own, ask, found in zip(prompts, asks, engine.step(asks), strict=True):
        count = len(ask.targets)
        logits, weights = dense.logits([[*view, *response[: count - 1]] for view in own], count)
        assert [one.token for one in found] == response[:count]
        expected = logits.log_softmax(dim=-1).topk(count)
        for one, ids, logprobs in zip(found, expected.indices.tolist(), expected.values.tolist(), strict=True):
            assert [token for token, _ in one.top] == ids[: count - 1]
            assert [logprob for _, logprob in one.top] == pytest.approx(logprobs[: count - 1], abs=TOLERANCE)
        torch.testing.assert_close(logits_of(found), logits, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(weights_of(found), weights, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_short_sequence_at_the_end_of_the_caches_reads_nothing_beyond(fused, dense, prompts, monkeypatch):
    """Where single tokens are put together, as on a GPU, the longest sets the width."""
    original = cached_row.CachedSegments
    monkeypatch.setattr(cached_row, "CachedSegments", lambda **settings: original(**settings | {"gathers": True}))
    long, short = prompts[2], prompts[1]
    needed = [max(map(len, own)) + 1 for own in (long, short)]
    assert needed[0] > needed[1]
    engine = make_engine(fused, cache_bytes=bytes_per_position(fused) * sum(needed))
    starts = [engine.extents.take(count) for count in needed]
    assert engine.extents.free == 0
    engine.step([Ask(start, (0, 0, 0), own) for start, own in zip(starts, (long, short), strict=True)])
    asks = [
        ask_for_logits(start, [len(view) for view in own], [[7]] * 3, [12])
        for start, own in zip(starts, (long, short), strict=True)
    ]
    for own, found in zip((long, short), engine.step(asks), strict=True):
        logits, _ = dense.logits([[*view, 7] for view in own], 1)
        torch.testing.assert_close(logits_of(found), logits, rtol=TOLERANCE, atol=TOLERANCE)
