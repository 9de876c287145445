"""Which tokens are kept, and the texts that are put to them."""

import dataclasses
import heapq

import numpy as np
import pytest
import torch

from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.row import PackedRow
from megafuser.report.extreme_tokens import AFTER, BEFORE, ExtremeCollector, build_extremes
from megafuser.runtime.distributed import single_process_cpu
from tests.small_domain import TokenStore

NAMES = ["first", "second"]
LENGTHS = {0: (5, 60, 9), 1: (40, 2)}


class Letters:
    """A tokenizer whose ids are letters."""

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(chr(97 + own % 26) for own in ids)


def row(references: list[tuple[int, int]], random: np.random.Generator) -> tuple[MixtureLoss, PackedRow]:
    lengths = [LENGTHS[domain][sample] for domain, sample in references]
    count = sum(lengths)
    weight = torch.tensor(random.uniform(0, 1, count), dtype=torch.float32)
    loss = MixtureLoss(
        fused=torch.tensor(random.uniform(0, 6, count), dtype=torch.float32),
        weights=torch.stack([weight, 1 - weight], dim=1),
        specialists=torch.tensor(random.uniform(0, 6, (count, 2)), dtype=torch.float32),
    )
    packed = PackedRow(
        specialists=(),
        targets=torch.zeros(count, dtype=torch.int64),
        domains=torch.tensor(np.repeat([domain for domain, _ in references], lengths)),
        samples=torch.tensor(np.repeat(np.arange(len(references)), lengths)),
        references=np.array(references).reshape(-1, 2),
    )
    return loss, packed


@pytest.fixture
def rows() -> list[tuple[MixtureLoss, PackedRow]]:
    random = np.random.default_rng(0)
    return [row(own, random) for own in ([(0, 1), (1, 0)], [], [(0, 2), (0, 0)], [(1, 1)])]


def every_difference(rows: list[tuple[MixtureLoss, PackedRow]], domain: int, specialist: int) -> dict:
    found = {}
    for loss, packed in rows:
        for place in (packed.domains == domain).nonzero().flatten().tolist():
            index = int(packed.samples[place])
            token = place - int((packed.samples < index).sum())
            difference = float(loss.fused[place] - loss.specialists[place, specialist])
            found[int(packed.references[index, 1]), token] = difference
    return found


def test_the_largest_of_all_rows_are_kept(rows: list[tuple[MixtureLoss, PackedRow]]) -> None:
    collector = ExtremeCollector(kept=4)
    for loss, packed in rows:
        collector.take(loss, packed)
    with single_process_cpu():
        found = collector.gather()
    assert found.keys() == {(domain, k, sign) for domain in (0, 1) for k in (0, 1) for sign in (-1, 1)}
    for (domain, k, sign), tokens in found.items():
        every = every_difference(rows, domain, k)
        assert [token.difference for token in tokens] == [
            sign * value for value in heapq.nlargest(4, (sign * value for value in every.values()))
        ]
        for token in tokens:
            assert every[token.sample, token.token] == token.difference
            assert token.fused - token.specialists[k] == pytest.approx(token.difference)
            length = LENGTHS[domain][token.sample]
            assert token.start == max(0, token.token - BEFORE)
            assert len(token.weights) == min(length, token.token + AFTER + 1) - token.start


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("rows", [1, 3], ids=["one row", "a row each"])
def test_of_equals_the_first_in_the_data_are_kept(order: tuple[int, ...], rows: int) -> None:
    """However rows are dealt; a sample that is there twice has equals."""
    collector = ExtremeCollector(kept=4)
    for references in [[(0, own) for own in order]] if rows == 1 else [[(0, own)] for own in order]:
        loss, packed = row(references, np.random.default_rng(0))
        loss = dataclasses.replace(
            loss, fused=torch.ones_like(loss.fused), specialists=torch.full_like(loss.weights, 2)
        )
        collector.take(loss, packed)
    with single_process_cpu():
        found = collector.gather()[0, 0, -1]
    assert [(token.sample, token.token) for token in found] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_texts_and_the_best_specialist_of_each_domain(rows: list[tuple[MixtureLoss, PackedRow]]) -> None:
    collector = ExtremeCollector(kept=6)
    for loss, packed in rows:
        collector.take(loss, packed)
    domains = []
    for domain, lengths in LENGTHS.items():
        store = TokenStore(specialists=2)
        for sample, length in enumerate(lengths):
            # two turns: the second has what is beyond the first three tokens
            ids = list(range(length))
            turns = [ids[:3], ids[3:]] if length > 3 else [ids]
            prompts = [[[20 + turn] * 3 for turn in range(len(turns))]] * 2
            store.add(f"{domain}:{sample}", prompts, turns)
        domains.append(store.freeze(f"domain {domain}", {}))
    with single_process_cpu():
        found = build_extremes(collector.gather(), [1, 0], domains, Letters(), NAMES, kept=6)
    wanted = sorted([*every_difference(rows, 0, 1).values(), *every_difference(rows, 1, 0).values()])
    assert [token.difference for token in found.helped] == wanted[:6]
    assert [token.difference for token in found.hurt] == wanted[::-1][:6]
    assert {token.domain for token in found.helped + found.hurt} == {"domain 0", "domain 1"}
    for token in found.helped + found.hurt:
        own = token.to_dict()
        assert own["text"] == chr(97 + token.token % 26)
        text = "".join(chr(97 + index % 26) for index in range(60))
        start = max(0, token.token - BEFORE)
        assert own["before"] + own["text"] == text[start : token.token + 1]
        assert text[token.token + 1 :].startswith(own["after"])
        assert own["best_specialist"] == {"domain 0": "second", "domain 1": "first"}[own["domain"]]
        assert own["prompt"] == ("uuu" if token.token < 3 else "vvv")


def test_a_token_that_neither_helps_nor_hurts_is_neither() -> None:
    loss, packed = row([(1, 1)], np.random.default_rng(0))
    same = MixtureLoss(fused=loss.fused, weights=loss.weights, specialists=loss.fused[:, None].repeat(1, 2))
    collector = ExtremeCollector()
    collector.take(same, packed)
    with single_process_cpu():
        assert all(not tokens for tokens in collector.gather().values())
