"""How megatron-core lays a chunk's parameters and gradients out in buffers, and what of them a rank's optimizer owns.

Source: `megatron/core/distributed/param_and_grad_buffer.py` and `optimizer/distrib_optimizer.py`, version 0.16.

Their bytes are counted in `planning.memory`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megafuser.planning.parameters import Parameter

# Parameters of a distributed optimizer start at a multiple of this many elements, buckets at a multiple of that many.
_PARAMETER_MULTIPLE, _BUCKET_MULTIPLE = 64, 128


@dataclass(frozen=True)
class Buffer:
    """One chunk's trainable parameters side by side.

    Attributes:
        parameters: in the buffer's order, which is the reverse of the model's.
        starts: where each begins, in elements.
        buckets: (start, end) of what is reduced at once, the padding included.
    """

    parameters: tuple[Parameter, ...]
    starts: tuple[int, ...]
    buckets: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Elements in all, the padding included."""
        return self.buckets[-1][1] if self.buckets else 0

    def owned(self, rank: int, ranks: int) -> list[int]:
        """Elements of each parameter whose optimizer states are at one data-parallel rank, of those that has any.

        Args:
            rank: the data-parallel rank.
            ranks: number of data-parallel ranks that share every bucket evenly.
        """
        shares = [
            (start + (end - start) // ranks * rank, start + (end - start) // ranks * (rank + 1))
            for start, end in self.buckets
        ]
        found = []
        for parameter, first in zip(self.parameters, self.starts, strict=True):
            last = first + parameter.size
            found += [min(last, end) - max(first, start) for start, end in shares if min(last, end) > max(first, start)]
        return found


def lay_out(
    parameters: Sequence[Parameter], *, distributed: bool, data_parallel: int, bucket_size: int | None
) -> Buffer:
    """Lays trainable parameters out as megatron-core's DDP does.

    Args:
        parameters: in the model's order.
        distributed: whether the optimizer's states are spread over data parallelism, for which places are padded.
        data_parallel: number of data-parallel ranks.
        bucket_size: elements from which on a bucket is closed; None for one bucket.
    """

    def pad(place: int, multiple: int) -> int:
        return math.ceil(place / multiple) * multiple if distributed else place

    whole = math.lcm(data_parallel, _BUCKET_MULTIPLE)
    starts: list[int] = []
    buckets: list[tuple[int, int]] = []
    begin = end = 0
    for parameter in reversed(parameters):
        alone = parameter.is_shared_embedding and distributed
        start = pad(end, _PARAMETER_MULTIPLE)
        if alone and begin < start:
            buckets.append((begin, start := pad(start, whole)))
            begin = start
        starts.append(start)
        end = start + parameter.size
        if alone or (bucket_size is not None and end - begin >= bucket_size):
            buckets.append((begin, end := pad(end, whole)))
            begin = end
    if begin < end:
        buckets.append((begin, pad(end, whole)))
    return Buffer(tuple(reversed(parameters)), tuple(starts), tuple(buckets))


def bucket_size(*, overlapped: bool, data_parallel: int, pipeline_rank: int, virtual_stage: int) -> int | None:
    """Elements of a bucket where gradients are reduced while the backward goes on; None for one bucket.

    Only the first pipeline rank's first chunk has several: elsewhere the reduction is not on the critical path.
    """
    if not overlapped or pipeline_rank > 0 or virtual_stage > 0:
        return None
    return max(40_000_000, 1_000_000 * data_parallel)
