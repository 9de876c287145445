"""The rows of a Hugging Face checkpoint in the order of the megatron-core weights, from memory maps.

They are written by `checkpoint.stream_writer`; the way back is `conversion.mcore_to_hf`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import xxhash

from megafuser.conversion.huggingface import HuggingFaceCheckpoint
from megafuser.conversion.memory_map import release_pages
from megafuser.conversion.row_pieces import Piece, pieces
from megafuser.conversion.tensor_accounting import Assignment
from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard

_RELEASED_BYTES = 64 << 20


class SourceRows:
    """One megatron-core weight to be, made of rows of its sources.

    Rows must be asked for from the first to the last, once; then the sources' hashes are known and the memory that
    reading them took is given back.

    Attributes:
        shape: of the weight, [rows, …].
    """

    def __init__(self, source: HuggingFaceCheckpoint, assignment: Assignment, card: ArchitectureCard) -> None:
        """Looks the sources up; nothing is read yet."""
        self.shape = assignment.mapping.shape(card)
        self._ranges = tuple(assignment.mapping.row_ranges(card))
        self._keys = assignment.sources
        self._tensors = [source.tensor(key) for key in assignment.sources]
        self._hashes = [xxhash.xxh3_128() for _ in assignment.sources]
        self._held = [_Held() for _ in self._tensors]

    def fill(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Puts rows [start, stop) into `out`, converted to its dtype.

        Raises:
            UserError: a finite weight is too large for `out`'s dtype.
        """
        for piece, rows in self._pieces(start, stop):
            room = out[piece.place]
            room.copy_(rows)
            refuse_overflow(self._keys[piece.source], rows, room)
            self._hashes[piece.source].update(_bytes(rows))

    def first_difference(self, start: int, stop: int, stored: torch.Tensor) -> str | None:
        """Compares rows [start, stop) with `stored`, bit by bit, so that NaNs and signed zeros count too.

        Returns:
            The key of the first source that differs; None where all is equal.
        """
        for piece, rows in self._pieces(start, stop):
            if not equal_bits(rows.to(stored.dtype), stored[piece.place]):
                return self._keys[piece.source]
        return None

    def hashes(self) -> dict[str, str]:
        """Source key → XXH3 hash of all its bytes, once `fill` has been asked for every row."""
        return {key: digest.hexdigest() for key, digest in zip(self._keys, self._hashes, strict=True)}

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Piece, torch.Tensor]]:
        for piece in pieces(self._ranges, start, stop):
            yield piece, self._tensors[piece.source][piece.rows]
            self._release(piece)

    def _release(self, piece: Piece) -> None:
        """Gives pages back, not too often: finding out what they are takes about a millisecond."""
        tensor, held = self._tensors[piece.source], self._held[piece.source]
        held.add(piece.rows)
        if held.rows * tensor[:1].nbytes >= _RELEASED_BYTES or held.read == len(tensor):
            part = tensor[held.first : held.stop]
            held.clear()
            if part.is_contiguous():
                release_pages(part)


@dataclass
class _Held:
    """Rows of one source that were read since some were last released; a target may read them in any order.

    Attributes:
        first: the first of them.
        stop: the one behind the last; those between the two need not have been read, and releasing these is no harm.
        rows: how many were read.
        read: how many ever were.
    """

    first: int = 0
    stop: int = 0
    rows: int = 0
    read: int = 0

    def add(self, rows: slice) -> None:
        """Counts rows that were read."""
        self.first = min(self.first, rows.start) if self.rows else rows.start
        self.stop = max(self.stop, rows.stop)
        self.rows += rows.stop - rows.start
        self.read += rows.stop - rows.start

    def clear(self) -> None:
        """Forgets them, since they were released."""
        self.first = self.stop = self.rows = 0


def refuse_overflow(key: str, weights: torch.Tensor, converted: torch.Tensor) -> None:
    """Compares weights with what a conversion to another dtype has made of them.

    Args:
        key: their name.
        weights: as they were.
        converted: the same ones in the new dtype.

    Raises:
        UserError: a finite weight has become an infinity.
    """
    limit = torch.finfo(converted.dtype).max
    if limit < torch.finfo(weights.dtype).max and not torch.equal(converted.isfinite(), weights.isfinite()):
        largest = weights[weights.isfinite()].abs().max().item()
        name = str(converted.dtype).removeprefix("torch.")
        raise UserError(
            f"{key} has weights up to {largest:.5g}, which {name} cannot hold (its largest is {limit:.5g}); choose "
            "another --dtype"
        )


def equal_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equality of shape, dtype and bytes."""
    same_kind = first.shape == second.shape and first.dtype == second.dtype
    return same_kind and torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data.cast("B")
