"""Conversion of one specialist: Hugging Face → a distributed checkpoint for any TP and PP.

No GPU, no model, and no more memory than a few blocks of rows, however large the model is. Which tensor goes where is
`families`; fetching a model is `conversion.hub`.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash

from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, write_manifest
from megafuser.checkpoint.manifest_content import SpecialistContent
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.checkpoint.stream_writer import StreamedTensor, write_streamed
from megafuser.config.run_directory import HUGGINGFACE, MANIFEST, WEIGHTS
from megafuser.conversion.huggingface import HuggingFaceCheckpoint
from megafuser.conversion.options import DTYPES, PhaseProgress, Report
from megafuser.conversion.source_rows import SourceRows
from megafuser.conversion.tensor_accounting import Assignment, ConversionPlan, plan_conversion
from megafuser.conversion.verification import compare_logits, compare_weights, forget_cached, tied_head_is_embedding
from megafuser.errors import UserError
from megafuser.families.config_json import card_from_hf_config
from megafuser.runtime.atomic import atomic_directory, check_can_be_written
from megafuser.runtime.output_checks import Mark, check_disk, check_output
from megafuser.specialist.card import ArchitectureCard

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MARK = Mark(MANIFEST, "kind", "specialist")


def import_specialist(
    hf: str | Path,
    out: str | Path,
    *,
    repository: str | None = None,
    revision: str | None = None,
    dtype: str = "keep",
    verify: str = "weights",
    overwrite: bool = False,
    progress: PhaseProgress = lambda phase, done, total: None,
    report: Report = lambda line: None,
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
    check_output(out, {"--hf": hf}, overwrite, mark=_MARK)
    source = HuggingFaceCheckpoint(hf)
    card = card_from_hf_config(source.config)
    plan = plan_conversion(card, source.shapes, str(hf))
    target_dtypes = _target_dtypes(source, plan, None if dtype == "keep" else DTYPES[dtype])
    with atomic_directory(out, overwrite) as temporary:
        conversion = _Conversion(source, card, plan, target_dtypes, progress)
        check_disk(temporary, conversion.total + sum(path.stat().st_size for path in source.carried_files()))
        (temporary / HUGGINGFACE).mkdir()
        source.copy_carried_files(temporary / HUGGINGFACE)
        _check_tied_head(source, plan)
        hashes = conversion.write(temporary / WEIGHTS)
        if verify != "none":
            conversion.verify_weights(temporary / WEIGHTS)
            rounded = "" if dtype == "keep" else f", after rounding to {dtype}"
            report(f"weights: all {len(plan.sources)} source tensors are equal bit by bit{rounded}")
        if verify == "logits":
            report(compare_logits(hf, card, temporary / WEIGHTS, rounded_to=DTYPES.get(dtype)))
        names = {_DTYPE_NAMES[value] for value in target_dtypes.values()}
        content: SpecialistContent = {
            "card": card.to_dict(),
            "source": {
                "name": repository or hf.resolve().name,
                "repository": repository,
                "revision": revision,
                "content": _content_of(source, conversion.source_hashes),
            },
            "tied_head": plan.tied_head,
            "rounded_to": None if dtype == "keep" else dtype,
        }
        description = Manifest(
            format_version=FORMAT_VERSION,
            kind="specialist",
            dtype=names.pop() if len(names) == 1 else "mixed",
            content=content,
        )
        return write_manifest(temporary, description, known={f"weights/{name}": hashes[name] for name in hashes})


def check_before_download(out: Path, overwrite: bool) -> None:
    """Refuses an output where nothing can be made, before a model is fetched for it.

    Args:
        out: the directory to make.
        overwrite: whether an existing checkpoint is replaced.

    Raises:
        UserError: says why.
    """
    check_output(out, {}, overwrite, mark=_MARK)
    check_can_be_written(out, "--out")


class _Conversion:
    """The weights' way from the source into a directory, and the comparison of what arrived."""

    def __init__(
        self,
        source: HuggingFaceCheckpoint,
        card: ArchitectureCard,
        plan: ConversionPlan,
        target_dtypes: dict[str, torch.dtype],
        progress: PhaseProgress,
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
        forget_cached(directory)
        with StreamedReader(directory) as stored:
            wanted = {assignment.key: _stacked(assignment, self.card) for assignment in self.plan.assignments}
            if stored.shapes != wanted or stored.dtypes != self.target_dtypes:
                raise UserError(f"{directory} does not have the keys, shapes and dtypes planned; check the disk")
            compare_weights(
                self.source,
                stored,
                self.plan.assignments,
                self.card,
                dtype_of=lambda assignment: self.target_dtypes[assignment.key],
                progress=lambda done: self.progress("verifying", done, self.total),
            )


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


def _check_tied_head(source: HuggingFaceCheckpoint, plan: ConversionPlan) -> None:
    if not tied_head_is_embedding(source, plan):
        raise UserError(
            f"{source.directory}: {plan.tied_head} differs from {plan.embedding} although config.json ties them; "
            "set tie_word_embeddings to what was meant"
        )


def _content_of(source: HuggingFaceCheckpoint, hashes: Mapping[str, str]) -> str:
    """A name for the source's weights, whatever files they are in."""
    digest = xxhash.xxh3_128()
    for key in sorted(hashes):
        digest.update(f"{key} {source.dtypes[key]} {list(source.shapes[key])} {hashes[key]}\n".encode())
    return f"xxh3_128:{digest.hexdigest()}"
