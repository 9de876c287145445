"""Keys and values of what has been read: for each specialist a pool, in which every sequence has a place of its own.

A place is an extent, a run of positions next to each other that is taken when a sequence begins and given back when it
ends. So a sequence's keys are one slice, which attention reads without a copy. All K pools have the same extents: the
views of a sequence differ by a prompt's few tokens, and one allocator is enough. Reading and filling it is
`inference.cached_row`; who gets a place is decided by `inference.scheduler` and `inference.scoring`.
"""

import bisect
from collections.abc import Sequence

import torch

from megafuser.fusion.model import FusedModel
from megafuser.specialist.build import Specialist


class KeyValuePool:
    """One specialist's keys (after RoPE) and values on this rank: [capacity, groups, d] for each of its layers."""

    def __init__(self, specialist: Specialist, capacity: int, device: torch.device) -> None:
        """Takes the memory.

        Args:
            specialist: this rank's piece of it.
            capacity: positions.
            device: where its weights are.
        """
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        for layer in specialist.decoder.layers:
            attention = layer.self_attention
            shape = (capacity, attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head)
            dtype = specialist.config.params_dtype
            # zeros: what nobody has written yet is weighed with zero here and there, and 0 · NaN is NaN
            self.keys[attention.layer_number] = torch.zeros(shape, dtype=dtype, device=device)
            self.values[attention.layer_number] = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Memory of all layers."""
        return sum(tensor.nbytes for layers in (self.keys, self.values) for tensor in layers.values())


def bytes_per_position(model: FusedModel) -> int:
    """What a position takes in the K pools of this rank: 2 · layers · groups · d numbers of each specialist."""
    total = 0
    for specialist in model.specialists:
        for layer in specialist.decoder.layers:
            attention = layer.self_attention
            numbers = attention.num_query_groups_per_partition * attention.hidden_size_per_attention_head
            total += 2 * numbers * specialist.config.params_dtype.itemsize
    return total


def make_pools(model: FusedModel, capacity: int, device: torch.device) -> list[KeyValuePool]:
    """The pools of all K specialists, in order."""
    return [KeyValuePool(specialist, capacity, device) for specialist in model.specialists]


class Extents:
    """Which positions of the pools are free: first fit, and neighbours that are free are one."""

    def __init__(self, capacity: int) -> None:
        """All `capacity` positions are free."""
        self.capacity = capacity
        self._free: list[tuple[int, int]] = [(0, capacity)]  # (start, length), in order
        self._taken: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Number of free positions, next to each other or not."""
        return sum(length for _, length in self._free)

    def take(self, length: int) -> int | None:
        """The start of `length` free positions next to each other, which are taken by that; None where there are none.

        Raises:
            ValueError: the length is not positive.
        """
        if length < 1:
            raise ValueError(f"an extent has at least one position, not {length}")
        for index, (start, room) in enumerate(self._free):
            if room >= length:
                self._free[index : index + 1] = [(start + length, room - length)] if room > length else []
                self._taken[start] = length
                return start
        return None

    def give_back(self, start: int) -> None:
        """Frees what `take` gave.

        Raises:
            KeyError: nothing is taken there.
        """
        length = self._taken.pop(start)
        index = bisect.bisect(self._free, (start, 0))
        before, after = self._free[:index], self._free[index:]
        if before and sum(before[-1]) == start:
            start, length = before[-1][0], before[-1][1] + length
            before.pop()
        if after and start + length == after[0][0]:
            length += after[0][1]
            after.pop(0)
        self._free = [*before, (start, length), *after]


def longest(views: Sequence[Sequence[int]]) -> int:
    """Positions of the longest of K views."""
    return max(map(len, views))
