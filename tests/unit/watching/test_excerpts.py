"""Samples for the page: which, which of their tokens, and the text of each."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megafuser.data.row_building import build_row
from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.watching.excerpts import (
    SHOWN_TOKENS,
    Collector,
    TokenValues,
    build_excerpts,
    choose_samples,
    token_pieces,
)
from tests.small_domain import TokenStore
from tests.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return make_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def domain(tokenizer, chats: list[list[tuple[str, str]]]) -> TokenizedDomain:
    store = TokenStore(1)
    for index, turns in enumerate(chats):
        ids = [[tokenizer(text, add_special_tokens=False).input_ids for text in turn] for turn in turns]
        store.add(f"id{index}", [[prompt for prompt, _ in ids]], [[*response, 2] for _, response in ids])
    return store.freeze("made up", {})


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [([1], [(0, 0)]), ([2, 9], [(0, 0), (0, 1), (1, 0), (1, 4), (1, 8)]), ([3], [(0, 0), (0, 1), (0, 2)])],
)
def test_chosen_samples_are_spread(sizes: list[int], chosen: list[tuple[int, int]]) -> None:
    assert choose_samples(sizes) == chosen


@pytest.mark.parametrize("text", ["The fox is 7.\n\treturn a + b", "é𝄞 ∑→ end", "", " leading and trailing "])
def test_pieces_join_to_the_text(tokenizer, text: str) -> None:
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, 2]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text + "</s>"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_cut_character_shows_as_such(tokenizer) -> None:
    ids = tokenizer("a𝄞", add_special_tokens=False).input_ids[:-1]
    assert token_pieces(tokenizer, ids)[-1].startswith("\N{REPLACEMENT CHARACTER}")


class RewritingTokenizer:
    """Decodes so that a later token changes what came before."""

    def decode(self, ids: list[int], **_: object) -> str:
        return "Ab" if len(ids) == 2 else "a"

    def convert_ids_to_tokens(self, index: int) -> str:
        return f"token{index}"


def test_a_rewriting_decoder_falls_back_to_the_token() -> None:
    assert token_pieces(RewritingTokenizer(), [4, 5]) == ["a", "token5"]


def test_the_collector_takes_the_chosen_samples_tokens_only(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = domain(tokenizer, [[("one", "two three")], [("four", "five six seven eight")], [("a", "return b " * 400)]])
    references = np.array([[0, 1], [0, 0], [0, 2]])
    row = build_row([data], references, 4096)
    tokens = len(row.targets)
    loss = MixtureLoss(
        fused=torch.arange(tokens, dtype=torch.float32),
        weights=torch.ones(tokens, 1),
        specialists=-torch.arange(tokens, dtype=torch.float32)[:, None],
        uniform=torch.zeros(tokens),
    )
    collector = Collector([(0, 0), (0, 2), (1, 1)])
    collector.take(loss, row)

    def alone(found: list, own: dict) -> None:
        found[0] = own

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)
    monkeypatch.setattr("torch.distributed.all_gather_object", alone)
    monkeypatch.setattr("megatron.core.parallel_state.get_tensor_model_parallel_rank", lambda: 0)
    found = collector.gather()
    assert found.keys() == {(0, 0), (0, 2)}
    start, count = int(data.response_lengths[1]), int(data.response_lengths[0])
    assert found[0, 0].fused.tolist() == list(range(start, start + count))
    assert found[0, 0].specialists[:, 0].tolist() == [-float(value) for value in range(start, start + count)]
    assert len(found[0, 2].fused) == SHOWN_TOKENS < data.response_lengths[2]


def values(count: int) -> TokenValues:
    return TokenValues(np.arange(count), np.zeros((count, 1)), np.ones((count, 1)))


def test_the_turns_of_a_chat_each_have_their_tokens(tokenizer) -> None:
    data = domain(tokenizer, [[("first question", "one two"), ("second", "three four five")]])
    (excerpt,) = build_excerpts({(0, 0): values(int(data.response_lengths[0]))}, [data], tokenizer)
    assert (excerpt.domain, excerpt.sample_id) == ("made up", "id0")
    assert [turn.prompt for turn in excerpt.turns] == ["first question", "second"]
    assert ["".join(turn.pieces) for turn in excerpt.turns] == ["one two</s>", "three four five</s>"]
    assert np.concatenate([turn.values.fused for turn in excerpt.turns]).tolist() == list(range(excerpt.shown_tokens))
    assert all(len(turn.pieces) == len(turn.values.fused) for turn in excerpt.turns)


def test_a_long_sample_is_cut_in_the_turn_where_the_limit_falls(tokenizer) -> None:
    data = domain(tokenizer, [[("a", "one"), ("b", "two three four"), ("c", "never shown")]])
    lengths = np.array([len(response) for _, response in data.turns(0, 0)])
    shown = int(lengths[0]) + 1
    (excerpt,) = build_excerpts({(0, 0): values(shown)}, [data], tokenizer)
    assert [len(turn.pieces) for turn in excerpt.turns] == [lengths[0], 1]
    assert excerpt.shown_tokens == shown < excerpt.response_tokens == lengths.sum()
