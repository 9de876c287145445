"""Megatron-core → Hugging Face: what a checkpoint argument means, and a directory that appears when it is complete.

Moving the weights is `conversion.mcore_to_hf`; a whole fused model is `conversion.fused.export`.
"""

from pathlib import Path

from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import Manifest, read_manifest
from megafuser.checkpoint.read_lock import reading
from megafuser.checkpoint.specialist_sources import sources_from_checkpoint
from megafuser.config.run_directory import resolve_checkpoint
from megafuser.conversion.fused.export import export_fused
from megafuser.conversion.mcore_to_hf import export_huggingface_files, export_weights, verify_export
from megafuser.conversion.options import DTYPES, PhaseProgress, Report
from megafuser.conversion.safetensors_writer import is_written_here
from megafuser.conversion.stored_specialist import find_specialist
from megafuser.conversion.verification import compare_logits
from megafuser.runtime.atomic import atomic_directory, check_can_be_written
from megafuser.runtime.output_checks import Mark, check_disk, check_output


class _ExportMark(Mark):
    """What tells an earlier export from a model that somebody else made, the specialist's original among them."""

    def __init__(self) -> None:
        """A fused model tells by its type; a specialist's configuration is its original's, but its weights tell."""
        super().__init__("config.json", "model_type", "megafuser")

    def is_in(self, directory: Path) -> bool:
        """Whether a directory is one."""
        return super().is_in(directory) or is_written_here(directory)

    def __str__(self) -> str:
        """As in a message."""
        return "weights that megafuser has written"


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    specialist: str | None = None,
    dtype: str = "keep",
    verify: str = "weights",
    overwrite: bool = False,
    progress: PhaseProgress = lambda phase, done, total: None,
    report: Report = lambda line: None,
) -> None:
    """Exports a checkpoint as a Hugging Face directory, or leaves nothing.

    Args:
        checkpoint: a converted specialist, or a run's checkpoint (see `resolve_checkpoint`); it is only read.
        out: the directory to make.
        specialist: one specialist of a run's checkpoint; None for the whole fused model.
        dtype: `fp32`, `bf16`, `fp16`, or `keep` for the stored one.
        verify: `weights` reads back what was written and compares every element with the checkpoint, bitwise; `logits`
            does so too and compares the fp32 logits of both models; `none` does neither.
        overwrite: replace an earlier export at `out`.
        progress: told how far it is.
        report: told what was verified, a line at a time.

    Raises:
        UserError: bad input, `out` exists, the disk is too full, or the result does not equal the checkpoint.
    """
    out = Path(out)
    directory = resolve_checkpoint(checkpoint)
    manifest = read_manifest(directory)
    inputs = {"--checkpoint": Path(checkpoint), "its checkpoint": directory}
    if manifest.kind != "specialist":
        inputs |= {
            f"its specialist {source.name}": source.checkpoint
            for source in sources_from_checkpoint(directory, manifest)
        }
    check_output(out, inputs, overwrite, mark=_ExportMark())
    with reading(directory):
        _export(directory, manifest, out, specialist, dtype, verify, overwrite, progress, report)


def _export(
    directory: Path,
    manifest: Manifest,
    out: Path,
    specialist: str | None,
    dtype: str,
    verify: str,
    overwrite: bool,
    progress: PhaseProgress,
    report: Report,
) -> None:
    """What is left to do when all inputs have been looked at."""
    check_can_be_written(out, "--out", replaced=True)
    if specialist is None and manifest.kind != "specialist":
        with atomic_directory(out, overwrite) as temporary:
            export_fused(
                directory, manifest, temporary, dtype=DTYPES.get(dtype), verify=verify, progress=progress, report=report
            )
        return
    stored = find_specialist(directory, manifest, specialist)
    if verify != "none":
        refuse_damaged([stored.weights.parent])
    target = DTYPES.get(dtype)
    total = stored.nbytes(target)
    with atomic_directory(out, overwrite) as temporary:
        check_disk(temporary, total)
        export_weights(stored, temporary, target, lambda done: progress("converting", done, total))
        export_huggingface_files(stored, temporary, target)
        if verify != "none":
            count = verify_export(stored, temporary, target, lambda done: progress("verifying", done, total))
            rounded = "" if target is None else f", after rounding to {dtype}"
            report(f"weights: all {count} tensors are equal bit by bit{rounded}")
        if verify == "logits":
            line = compare_logits(temporary, stored.card, stored.weights, prefix=stored.prefix, rounded_to=target)
            report(line)
