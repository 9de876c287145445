"""Continuations against a forward of everything; contexts are read once."""

import pytest

from megafuser.errors import UserError
from megafuser.inference.prompts import Message
from megafuser.inference.scoring import Continuation, score
from tests.unit.inference.case import LIMIT, make_engine


@pytest.mark.parametrize(("max_running", "positions"), [(1, 16), (4, 16), (2, 4)])  # 4: a continuation takes two steps
def test_scores_are_those_of_a_forward_of_everything(fused, encoder, dense, max_running, positions, monkeypatch):
    engine = make_engine(fused)
    contexts = [
        encoder.chat([Message("user", "What is the sum of three and four?")]),
        encoder.raw("The quick brown fox", 3),
        ((1,), (1,), (1,)),
    ]
    endings = [(7, 300, 2), (12,), (45, 46, 47, 48, 49, 50), (7, 300, 3)]
    wanted = [Continuation(context, ids) for ids in endings for context in contexts]
    read, told = [], []
    original = engine.step

    def step(asks):
        read.append(sum(max(map(len, ask.ids)) for ask in asks))
        return original(asks)

    monkeypatch.setattr(engine, "step", step)
    monkeypatch.setattr("megafuser.inference.scoring._STEP_POSITIONS", positions)
    found = score(engine, wanted, max_running=max_running, on_scored=lambda number, _: told.append(number))
    for one, predictions in zip(wanted, found, strict=True):
        logits, _ = dense.logits([[*own, *one.ids[:-1]] for own in one.context], len(one.ids))
        expected = logits.log_softmax(dim=-1)[range(len(one.ids)), list(one.ids)].tolist()
        assert [p.token for p in predictions] == list(one.ids)
        assert [p.logprob for p in predictions] == pytest.approx(expected, abs=1e-4)
        assert [p.is_greedy for p in predictions] == [
            int(z.argmax()) == token for z, token in zip(logits, one.ids, strict=True)
        ]
    assert sorted(told) == list(range(len(wanted)))
    assert sum(read) == sum(max(map(len, c)) - 1 for c in contexts) + sum(map(len, endings)) * len(contexts)
    assert max(read) <= positions
    assert engine.extents.free == engine.extents.capacity


def test_what_has_no_room_is_refused_before_anything_is_read(fused):
    engine = make_engine(fused)
    with pytest.raises(UserError, match=f"room for {LIMIT}"):
        score(engine, [Continuation(((1,),) * 3, (5,) * (LIMIT + 1))], max_running=1)
    assert engine.extents.free == engine.extents.capacity


@pytest.mark.parametrize(("context", "ids"), [(((1,),) * 3, ()), (((1,), (), (1,)), (5,))])
def test_what_has_no_tokens_is_refused(context, ids):
    with pytest.raises(UserError, match="no tokens"):
        Continuation(context, ids)
