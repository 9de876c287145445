"""Conversion of one specialist: Hugging Face → a distributed checkpoint for any TP and PP.

No GPU, no model, and no more memory than a few blocks of rows, however large the model is.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import xxhash

from megafuser.checkpoint.atomic import atomic_directory
from megafuser.checkpoint.huggingface import HuggingFaceCheckpoint
from megafuser.checkpoint.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, write_manifest
from megafuser.checkpoint.memory_map import release_pages
from megafuser.checkpoint.plan import Assignment, ConversionPlan, plan_conversion
from megafuser.checkpoint.row_blocks import row_blocks
from megafuser.checkpoint.source_rows import SourceRows, equal_bits
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.checkpoint.stream_writer import StreamedTensor, write_streamed
from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.huggingface import card_from_hf_config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
VERIFICATIONS = ("none", "weights", "logits")
# Largest difference of fp32 logits between Hugging Face's model and ours that passes as rounding.
LOGITS_TOLERANCE = 1e-4
_DISK_RESERVE_BYTES = 32 << 20

Progress = Callable[[str, int, int], None]
"""Called with the phase, the bytes done and the bytes in all."""


def import_specialist(
    hf: str | Path,
    out: str | Path,
    *,
    repository: str | None = None,
    revision: str | None = None,
    dtype: str = "keep",
    verify: str = "weights",
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Converts a Hugging Face directory into a specialist checkpoint, or leaves nothing.

    Args:
        hf: a directory with config.json, weights and a tokenizer; it is only read.
        out: the directory to make.
        repository: where the directory was downloaded from, for the record.
        revision: the commit that was downloaded.
        dtype: `fp32`, `bf16`, `fp16`, or `keep` for the source's.
        verify: `weights` reads back what was written and compares every element with the source, bitwise; `logits` does
            so too and compares the fp32 logits of both models; `none` does neither.
        overwrite: replace an existing checkpoint at `out`.
        progress: told how far it is.
        report: told what was verified, a line at a time.

    Returns:
        The manifest of the new checkpoint.

    Raises:
        UserError: bad input, `out` exists, the disk is too full, or the result does not equal the source.
    """
    hf, out = Path(hf), Path(out)
    _check_output(hf, out, overwrite)
    source = HuggingFaceCheckpoint(hf)
    card = card_from_hf_config(source.config)
    plan = plan_conversion(card, source.shapes, str(hf))
    target_dtypes = _target_dtypes(source, plan, None if dtype == "keep" else DTYPES[dtype])
    with atomic_directory(out, overwrite) as temporary:
        _check_disk(temporary, source, card, plan, target_dtypes)
        _check_tied_head(source, plan)
        conversion = _Conversion(source, card, plan, target_dtypes, progress)
        hashes = conversion.write(temporary / "weights")
        if verify != "none":
            conversion.verify_weights(temporary / "weights")
            rounded = "" if dtype == "keep" else f", after rounding to {dtype}"
            report(f"weights: all {len(plan.sources)} source tensors are equal bit by bit{rounded}")
        if verify == "logits":
            report(_verify_logits(hf, card, temporary / "weights", DTYPES.get(dtype)))
        (temporary / "huggingface").mkdir()
        source.copy_carried_files(temporary / "huggingface")
        names = {_DTYPE_NAMES[value] for value in target_dtypes.values()}
        description = Manifest(
            format_version=FORMAT_VERSION,
            kind="specialist",
            dtype=names.pop() if len(names) == 1 else "mixed",
            content={
                "card": card.to_dict(),
                "source": {
                    "name": repository or hf.resolve().name,
                    "repository": repository,
                    "revision": revision,
                    "content": _content_of(source, conversion.source_hashes),
                },
                "tied_head": plan.tied_head,
            },
        )
        return write_manifest(temporary, description, known={f"weights/{name}": hashes[name] for name in hashes})


class _Conversion:
    """The weights' way from the source into a directory, and the comparison of what arrived."""

    def __init__(
        self,
        source: HuggingFaceCheckpoint,
        card: ArchitectureCard,
        plan: ConversionPlan,
        target_dtypes: dict[str, torch.dtype],
        progress: Progress,
    ) -> None:
        self.source, self.card, self.plan, self.target_dtypes = source, card, plan, target_dtypes
        self.progress = progress
        self.source_hashes: dict[str, str] = {}
        self.total = sum(_target_bytes(assignment, card, target_dtypes) for assignment in plan.assignments)

    def write(self, directory: Path) -> dict[str, str]:
        """Streams every tensor; returns the hashes of the files with the tensors, and fills `source_hashes`."""
        directory.mkdir()
        rows = [SourceRows(self.source, assignment, self.card) for assignment in self.plan.assignments]
        tensors = [
            StreamedTensor(
                key=assignment.key,
                layer=assignment.layer,
                num_layers=self.card.num_layers,
                shape=part.shape,
                dtype=self.target_dtypes[assignment.key],
                fill=part.fill,
            )
            for assignment, part in zip(self.plan.assignments, rows, strict=True)
        ]
        hashes = write_streamed(directory, tensors, lambda done: self.progress("converting", done, self.total))
        for part in rows:
            self.source_hashes |= part.hashes()
        return hashes

    def verify_weights(self, directory: Path) -> None:
        """Reads every tensor back and compares it with the source, bit by bit.

        Raises:
            UserError: names the first weight that differs.
        """
        done = 0
        with StreamedReader(directory) as stored:
            wanted = {a.key: _stacked(a, self.card) for a in self.plan.assignments}
            if stored.shapes != wanted or stored.dtypes != self.target_dtypes:
                raise UserError(f"{directory} does not have the keys, shapes and dtypes planned; check the disk")
            for assignment in self.plan.assignments:
                rows = SourceRows(self.source, assignment, self.card)
                for start, stop in row_blocks(rows.shape, stored.dtypes[assignment.key]):
                    block = torch.empty((stop - start, *rows.shape[1:]), dtype=stored.dtypes[assignment.key])
                    stored.read_rows(assignment.key, assignment.layer, start, stop, block)
                    if key := rows.equal(start, stop, block):
                        raise UserError(f"{key} was not written as it was read; check the disk and convert again")
                    done += block.nbytes
                    self.progress("verifying", done, self.total)


def _stacked(assignment: Assignment, card: ArchitectureCard) -> tuple[int, ...]:
    shape = assignment.mapping.shape(card)
    return shape if assignment.layer is None else (card.num_layers, *shape)


def _target_bytes(assignment: Assignment, card: ArchitectureCard, dtypes: Mapping[str, torch.dtype]) -> int:
    return torch.Size(assignment.mapping.shape(card)).numel() * dtypes[assignment.key].itemsize


def _target_dtypes(
    source: HuggingFaceCheckpoint, plan: ConversionPlan, wanted: torch.dtype | None
) -> dict[str, torch.dtype]:
    """megatron-core key → dtype; with `keep`, all sources of one key must agree, since they become one tensor."""
    found: dict[str, dict[torch.dtype, str]] = defaultdict(dict)
    for assignment in plan.assignments:
        for key in assignment.sources:
            found[assignment.key].setdefault(source.dtypes[key], key)
    for examples in found.values():
        if len(examples) > 1 and wanted is None:
            shown = ", ".join(f"{key} is {_DTYPE_NAMES[dtype]}" for dtype, key in examples.items())
            raise UserError(f"{source.directory} mixes dtypes ({shown}); choose one with --dtype")
    return {key: wanted or next(iter(examples)) for key, examples in found.items()}


def _check_output(hf: Path, out: Path, overwrite: bool) -> None:
    inside, outside = out.resolve(), hf.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UserError(f"--out {out} and --hf {hf} contain one another; choose another output")
    if overwrite and out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise UserError(f"{out} is no checkpoint (it has no {MANIFEST_NAME}), so it is not overwritten")


def _check_disk(
    directory: Path,
    source: HuggingFaceCheckpoint,
    card: ArchitectureCard,
    plan: ConversionPlan,
    target_dtypes: Mapping[str, torch.dtype],
) -> None:
    needed = _DISK_RESERVE_BYTES + sum(path.stat().st_size for path in source.carried_files())
    needed += sum(_target_bytes(assignment, card, target_dtypes) for assignment in plan.assignments)
    free = shutil.disk_usage(directory).free
    if free < needed:
        place = directory.parent
        raise UserError(f"{place} has {free / 2**30:.2f} GiB free, but {needed / 2**30:.2f} GiB are needed; make room")


def _check_tied_head(source: HuggingFaceCheckpoint, plan: ConversionPlan) -> None:
    if plan.tied_head is None:
        return
    head, embedding = (source.tensor(key) for key in (plan.tied_head, plan.embedding))
    for start, stop in row_blocks(head.shape, head.dtype):
        parts = head[start:stop], embedding[start:stop]
        if not equal_bits(*parts):
            raise UserError(
                f"{source.directory}: {plan.tied_head} differs from {plan.embedding} although config.json ties them; "
                "set tie_word_embeddings to what was meant"
            )
        for part in parts:
            release_pages(part)


def _verify_logits(hf: Path, card: ArchitectureCard, weights: Path, rounded_to: torch.dtype | None) -> str:
    # imported here: transformers and the model code take seconds and memory, which a conversion need not spend
    from megafuser.checkpoint.logits import largest_logit_difference
    from megafuser.runtime.distributed import single_process_cpu

    with single_process_cpu():
        difference = largest_logit_difference(hf, card, weights, rounded_to)
    if not difference <= LOGITS_TOLERANCE:
        raise UserError(
            f"{hf}: fp32 logits differ from Hugging Face's by {difference:.3g}, more than {LOGITS_TOLERANCE:g}; the "
            "model is not converted correctly, so nothing was kept"
        )
    return f"logits: the largest difference from Hugging Face's in fp32 is {difference:.3g}"


def _content_of(source: HuggingFaceCheckpoint, hashes: Mapping[str, str]) -> str:
    """A name for the source's weights, whatever files they are in."""
    digest = xxhash.xxh3_128()
    for key in sorted(hashes):
        digest.update(f"{key} {source.dtypes[key]} {list(source.shapes[key])} {hashes[key]}\n".encode())
    return f"xxh3_128:{digest.hexdigest()}"
