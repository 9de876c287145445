"""Conversion of one specialist: Hugging Face → a distributed checkpoint for any TP and PP. No GPU, no model."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megafuser.checkpoint.atomic import atomic_directory
from megafuser.checkpoint.huggingface import HuggingFaceCheckpoint
from megafuser.checkpoint.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, hash_file, write_manifest
from megafuser.checkpoint.plan import Assignment, ConversionPlan, plan_conversion
from megafuser.checkpoint.torch_dist import load_weights, save_weights, stored_shapes, whole_tensor
from megafuser.errors import UserError
from megafuser.runtime.distributed import single_process_cpu
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
    dtype: str = "keep",
    verify: str = "weights",
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Converts a Hugging Face directory into a specialist checkpoint, or leaves nothing.

    Args:
        hf: a directory with config.json, safetensors and a tokenizer; it is only read.
        out: the directory to make.
        dtype: `fp32`, `bf16`, `fp16`, or `keep` for the source's.
        verify: `weights` compares every element that was written with the source, bitwise; `logits` does so too and
            compares the fp32 logits of both models; `none` does neither.
        overwrite: replace an existing checkpoint at `out`.
        progress: told how far it is.
        report: told what was verified, a line at a time.

    Returns:
        The manifest of the new checkpoint.

    Raises:
        UserError: bad input, `out` exists, the disk is too full, or the result does not equal the source.
    """
    hf, out = Path(hf), Path(out)
    source = HuggingFaceCheckpoint(hf)
    card = card_from_hf_config(source.config)
    plan = plan_conversion(card, source.shapes, str(hf))
    target_dtypes = _target_dtypes(source, plan, None if dtype == "keep" else DTYPES[dtype])
    _check_output(hf, out, overwrite)
    with atomic_directory(out, overwrite) as temporary:
        _check_disk(temporary, source, plan, target_dtypes)
        _check_tied_head(source, plan)
        conversion = _Conversion(source, card, plan, target_dtypes, progress)
        with single_process_cpu():
            conversion.write(temporary / "weights")
            if verify != "none":
                conversion.verify_weights(temporary / "weights")
                rounded = "" if dtype == "keep" else f", after rounding to {dtype}"
                report(f"weights: all {len(source.shapes)} source tensors are equal bit by bit{rounded}")
            if verify == "logits":
                report(_verify_logits(hf, card, temporary / "weights", DTYPES.get(dtype)))
        (temporary / "huggingface").mkdir()
        source.copy_carried_files(temporary / "huggingface")
        names = {_DTYPE_NAMES[value] for value in target_dtypes.values()}
        description = Manifest(
            format_version=FORMAT_VERSION,
            kind="specialist",
            dtype=names.pop() if len(names) == 1 else "mixed",
            content={"card": card.to_dict(), "source": _describe_source(source)},
        )
        return write_manifest(temporary, description)


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
        self.source, self.card, self.plan, self.target_dtypes = (source, card, plan, target_dtypes)
        self.progress = progress
        self.total = sum(source.nbytes(key) for assignment in plan.assignments for key in assignment.sources)

    def write(self, directory: Path) -> None:
        """Transforms every tensor and saves them all; the process group must be there."""
        directory.mkdir()
        tensors, done = {}, 0
        for assignment in self.plan.assignments:
            made = assignment.mapping.to_mcore(self.card, *self._sources(assignment)).contiguous()
            tensors[_name(assignment)] = self._sharded(assignment, made)
            done += self._source_bytes(assignment)
            self.progress("converting", done, self.total)
        save_weights(tensors, directory)

    def verify_weights(self, directory: Path) -> None:
        """Reads every tensor back and compares it with the source, bit by bit.

        Raises:
            UserError: names the first weight that differs.
        """
        keys = {assignment.mapping.mcore for assignment in self.plan.assignments}
        stored = stored_shapes(directory)
        if set(stored) != keys:
            raise UserError(f"what was written has other keys than planned: {sorted(keys ^ set(stored))}")
        done = 0
        for assignment in self.plan.assignments:
            shape = stored[assignment.mapping.mcore][1 if assignment.layer is not None else 0 :]
            room = torch.empty(shape, dtype=self.target_dtypes[assignment.mapping.mcore])
            wanted = {_name(assignment): self._sharded(assignment, room)}
            load_weights(wanted, directory, exact=False)
            parts = assignment.mapping.to_hf(self.card, room)
            for key, part, original in zip(assignment.sources, parts, self._sources(assignment), strict=True):
                if not _equal_bits(part, original):
                    raise UserError(f"{key} was not written as it was read; check the disk and convert again")
            done += self._source_bytes(assignment)
            self.progress("verifying", done, self.total)

    def _sources(self, assignment: Assignment) -> list[torch.Tensor]:
        dtype = self.target_dtypes[assignment.mapping.mcore]
        return [self.source.tensor(key).to(dtype) for key in assignment.sources]

    def _source_bytes(self, assignment: Assignment) -> int:
        return sum(self.source.nbytes(key) for key in assignment.sources)

    def _sharded(self, assignment: Assignment, tensor: torch.Tensor) -> Any:
        return whole_tensor(assignment.mapping.mcore, tensor, assignment.layer, self.card.num_layers)


def _name(assignment: Assignment) -> str:
    """A name that is unique over the layers, for the state dict; the checkpoint knows the mapping's key alone."""
    return assignment.mapping.mcore if assignment.layer is None else f"{assignment.mapping.mcore}@{assignment.layer}"


def _equal_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equality of the bytes, so that NaNs and signed zeros count too."""
    same_kind = first.shape == second.shape and first.dtype == second.dtype
    return same_kind and torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _target_dtypes(
    source: HuggingFaceCheckpoint, plan: ConversionPlan, wanted: torch.dtype | None
) -> dict[str, torch.dtype]:
    """megatron-core key → dtype; with `keep`, all sources of one key must agree, since they become one tensor."""
    found: dict[str, dict[torch.dtype, str]] = defaultdict(dict)
    for assignment in plan.assignments:
        for key in assignment.sources:
            found[assignment.mapping.mcore].setdefault(source.dtypes[key], key)
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
    directory: Path, source: HuggingFaceCheckpoint, plan: ConversionPlan, target_dtypes: dict[str, torch.dtype]
) -> None:
    needed = _DISK_RESERVE_BYTES + sum(path.stat().st_size for path in source.carried_files())
    for assignment in plan.assignments:
        size = target_dtypes[assignment.mapping.mcore].itemsize
        needed += sum(torch.Size(source.shapes[key]).numel() * size for key in assignment.sources)
    free = shutil.disk_usage(directory).free
    if free < needed:
        place = directory.parent
        raise UserError(f"{place} has {free / 2**30:.2f} GiB free, but {needed / 2**30:.2f} GiB are needed; make room")


def _check_tied_head(source: HuggingFaceCheckpoint, plan: ConversionPlan) -> None:
    if plan.tied_head and not _equal_bits(source.tensor(plan.tied_head), source.tensor(plan.embedding)):
        raise UserError(
            f"{source.directory}: {plan.tied_head} differs from {plan.embedding} although config.json ties them; "
            "set tie_word_embeddings to what was meant"
        )


def _verify_logits(hf: Path, card: ArchitectureCard, weights: Path, rounded_to: torch.dtype | None) -> str:
    # imported here: transformers and the model code take seconds, which the other verifications need not spend
    from megafuser.checkpoint.logits import largest_logit_difference

    difference = largest_logit_difference(hf, card, weights, rounded_to)
    if not difference <= LOGITS_TOLERANCE:
        raise UserError(
            f"{hf}: fp32 logits differ from Hugging Face's by {difference:.3g}, more than {LOGITS_TOLERANCE:g}; the "
            "model is not converted correctly, so nothing was kept"
        )
    return f"logits: the largest difference from Hugging Face's in fp32 is {difference:.3g}"


def _describe_source(source: HuggingFaceCheckpoint) -> dict[str, Any]:
    paths = [source.directory / "config.json", *source.weight_files]
    return {"name": source.directory.resolve().name, "files": {path.name: hash_file(path) for path in paths}}
