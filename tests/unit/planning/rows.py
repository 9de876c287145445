"""Packed rows of samples of given lengths."""

from collections.abc import Sequence

import numpy as np

from megafuser.data.row_building import build_row
from megafuser.fusion.row import PackedRow
from tests.small_domain import TokenStore


def make_row(lengths: Sequence[int], width: int, specialists: int, vocabulary: int = 300) -> PackedRow:
    """A row of those samples, equally long for all specialists; the second half of each is its response."""
    generator = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return [int(token) for token in generator.integers(1, vocabulary, count)]

    store = TokenStore(specialists)
    for index, length in enumerate(lengths):
        response = length // 2
        store.add(str(index), [[ids(length - response)] for _ in range(specialists)], [ids(response)])
    domain = store.freeze("made up", {})
    return build_row([domain], np.array([[0, index] for index in range(len(lengths))]), width)
