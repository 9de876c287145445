"""The proof of a conversion, in either direction: what was written is read again and compared.

The logits come from `conversion.logits`; those of a fused model are compared in `conversion.fused.logits`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from megafuser.checkpoint.row_blocks import row_blocks
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.conversion.huggingface import HuggingFaceCheckpoint
from megafuser.conversion.memory_map import release_pages
from megafuser.conversion.options import ByteProgress
from megafuser.conversion.source_rows import SourceRows, equal_bits
from megafuser.conversion.tensor_accounting import Assignment, ConversionPlan
from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard


def forget_cached(directory: Path) -> None:
    """Makes what reads a directory's files next read the disk, not the memory that they were written from.

    Args:
        directory: files that were flushed; those below it too.
    """
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def compare_weights(
    huggingface: HuggingFaceCheckpoint,
    stored: StreamedReader,
    assignments: Sequence[Assignment],
    card: ArchitectureCard,
    *,
    prefix: str = "",
    dtype_of: Callable[[Assignment], torch.dtype],
    progress: ByteProgress = lambda done: None,
) -> None:
    """Compares every element of a distributed checkpoint with Hugging Face's weights, bit by bit.

    Args:
        huggingface: the one side.
        stored: the other.
        assignments: which weights belong to which.
        card: the architecture.
        prefix: of the keys in `stored`.
        dtype_of: the dtype of the side that was written, to which the other is rounded.
        progress: told the bytes compared so far.

    Raises:
        UserError: names the first weight that differs.
    """
    done = 0
    for assignment in assignments:
        rows = SourceRows(huggingface, assignment, card)
        dtype = dtype_of(assignment)
        for start, stop in row_blocks(rows.shape, dtype):
            block = stored.rows(prefix + assignment.key, assignment.layer, start, stop).to(dtype)
            if key := rows.first_difference(start, stop, block):
                raise UserError(f"{key} was not written as it was read; check the disk and convert again")
            done += block.nbytes
            progress(done)


def tied_head_is_embedding(huggingface: HuggingFaceCheckpoint, plan: ConversionPlan) -> bool:
    """Compares a head that is stored though tied with the embedding, bit by bit; true where none is stored."""
    if plan.tied_head is None:
        return True
    head, embedding = huggingface.tensor(plan.tied_head), huggingface.tensor(plan.embedding)
    for start, stop in row_blocks(head.shape, head.dtype):
        parts = head[start:stop], embedding[start:stop]
        if not equal_bits(*parts):
            return False
        for part in parts:
            if part.is_contiguous():
                release_pages(part)
    return True


def compare_logits(
    huggingface: Path, card: ArchitectureCard, weights: Path, *, prefix: str = "", rounded_to: torch.dtype | None = None
) -> str:
    """Runs both models in fp32 on fixed prompts.

    Args:
        huggingface: the Hugging Face directory.
        card: the architecture.
        weights: the distributed checkpoint.
        prefix: of the keys in it.
        rounded_to: the dtype that one side was rounded to; the other is rounded alike.

    Returns:
        A line that says how much they differ at most.

    Raises:
        UserError: more than rounding explains.
    """
    # imported here: transformers and the model code take seconds and memory, which a conversion need not spend
    from megafuser.conversion.logits import compare_with_hugging_face
    from megafuser.runtime.distributed import single_process_cpu

    with single_process_cpu():
        found = compare_with_hugging_face(huggingface, card, weights, prefix=prefix, rounded_to=rounded_to)
    return found.proof(of=f"{huggingface} and of its conversion", whose="Hugging Face's", done="converted")
