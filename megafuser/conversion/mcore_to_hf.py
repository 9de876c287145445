"""The way back: the weights of one specialist from a distributed checkpoint into a Hugging Face directory.

Whatever layout wrote the checkpoint; no GPU, no model, and no more memory than a few blocks of rows. What a checkpoint
argument means is `conversion.export`; a whole fused model is `conversion.fused.export`.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from megafuser.checkpoint.row_blocks import row_blocks
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.conversion.carried_files import copy_carried_files
from megafuser.conversion.huggingface import HuggingFaceCheckpoint
from megafuser.conversion.options import ByteProgress
from megafuser.conversion.row_pieces import pieces
from megafuser.conversion.safetensors_writer import SafetensorsWriter, TensorShape
from megafuser.conversion.source_rows import refuse_overflow
from megafuser.conversion.stored_specialist import StoredSpecialist, tensor_shapes
from megafuser.conversion.tensor_accounting import Assignment, assign, plan_conversion
from megafuser.conversion.verification import compare_weights, forget_cached, tied_head_is_embedding
from megafuser.errors import UserError
from megafuser.families.family import EMBEDDING


def export_weights(
    specialist: StoredSpecialist,
    out: Path,
    dtype: torch.dtype | None = None,
    progress: ByteProgress = lambda done: None,
) -> None:
    """Writes safetensors with Hugging Face's keys, in shards of at most 5 GB; vocabulary padding is left behind.

    Args:
        specialist: what to write.
        out: an existing directory without weights.
        dtype: converts all weights; None for the dtypes they are stored in.
        progress: told the bytes written so far.

    Raises:
        UserError: the checkpoint does not hold exactly the weights of the architecture, or is damaged; or a finite
            weight is too large for `dtype`.
    """
    done = 0
    with StreamedReader(specialist.weights) as stored:
        shapes = tensor_shapes(specialist, stored, dtype)
        with SafetensorsWriter(out, shapes) as writer:
            for assignment, start, block in _blocks(specialist, stored, shapes):
                ranges = assignment.mapping.row_ranges(specialist.card)
                for piece in pieces(ranges, start, start + len(block)):
                    key = assignment.sources[piece.source]
                    writer.write_rows(key, piece.rows.start, block[piece.place])
                    if key == EMBEDDING.sources[0] and specialist.tied_head is not None:
                        writer.write_rows(specialist.tied_head, piece.rows.start, block[piece.place])
                done += block.nbytes
                progress(done)


def verify_export(
    specialist: StoredSpecialist,
    out: Path,
    dtype: torch.dtype | None = None,
    progress: ByteProgress = lambda done: None,
) -> int:
    """Reads an exported directory as an import would, and compares every weight with the checkpoint, bit by bit.

    Args:
        specialist: what was written.
        out: the complete Hugging Face directory.
        dtype: as in `export_weights`.
        progress: told the bytes compared so far.

    Returns:
        The number of tensors that are equal.

    Raises:
        UserError: names the first weight that differs.
    """
    forget_cached(out)
    exported = HuggingFaceCheckpoint(out)
    plan = plan_conversion(specialist.card, exported.shapes, str(out))
    with StreamedReader(specialist.weights) as stored:
        compare_weights(
            exported,
            stored,
            plan.assignments,
            specialist.card,
            prefix=specialist.prefix,
            dtype_of=lambda assignment: dtype or stored.dtypes[specialist.prefix + assignment.key],
            progress=progress,
        )
    if not tied_head_is_embedding(exported, plan):
        raise UserError(f"{plan.tied_head} was not written as it was read; check the disk and convert again")
    return len(plan.sources)


def export_huggingface_files(specialist: StoredSpecialist, out: Path, dtype: torch.dtype | None = None) -> None:
    """Copies configuration and tokenizer files as they came; the dtype in config.json is corrected where it changed.

    Args:
        specialist: whose.
        out: an existing directory.
        dtype: as in `export_weights`.
    """
    copy_carried_files(specialist.huggingface, out)
    if specialist.as_imported and dtype is None:
        return
    with StreamedReader(specialist.weights) as stored:
        dtypes = {shape.dtype for shape in tensor_shapes(specialist, stored, dtype).values()}
    path = out / "config.json"
    config = json.loads(path.read_text("utf-8"))
    field = "dtype" if "dtype" in config else "torch_dtype"
    name = str(next(iter(dtypes))).removeprefix("torch.")
    if len(dtypes) == 1 and config.get(field, name) != name:
        path.write_text(json.dumps(config | {field: name}, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _blocks(
    specialist: StoredSpecialist, stored: StreamedReader, shapes: dict[str, TensorShape]
) -> Iterator[tuple[Assignment, int, torch.Tensor]]:
    """Reads the next block of rows while the one before is used."""

    def read(assignment: Assignment, start: int, stop: int) -> tuple[Assignment, int, torch.Tensor]:
        block = stored.rows(specialist.prefix + assignment.key, assignment.layer, start, stop)
        converted = block.to(shapes[assignment.sources[0]].dtype)
        for piece in pieces(assignment.mapping.row_ranges(specialist.card), start, stop):
            refuse_overflow(assignment.sources[piece.source], block[piece.place], converted[piece.place])
        return assignment, start, converted

    with ThreadPoolExecutor(1) as pool:
        before = None
        for assignment in assign(specialist.card):
            dtype = shapes[assignment.sources[0]].dtype
            for start, stop in row_blocks(assignment.mapping.shape(specialist.card), dtype):
                coming = pool.submit(read, assignment, start, stop)
                if before is not None:
                    yield before.result()
                before = coming
        if before is not None:
            yield before.result()
