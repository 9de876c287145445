"""Where a specialist's weights are, whatever checkpoint was named; and whether they are still as they were written.

The weights are read by `checkpoint.stream_reader`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from megafuser.checkpoint.manifest import Manifest, read_manifest
from megafuser.checkpoint.specialist_sources import read_specialist, sources_from_checkpoint
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.config.run_directory import HUGGINGFACE, WEIGHTS
from megafuser.conversion.safetensors_writer import TensorShape
from megafuser.conversion.tensor_accounting import assign
from megafuser.errors import UserError
from megafuser.families.family import EMBEDDING, OUTPUT_HEAD
from megafuser.specialist.card import ArchitectureCard


@dataclass(frozen=True)
class StoredSpecialist:
    """One specialist's weights in a distributed checkpoint.

    Attributes:
        weights: the distributed checkpoint.
        card: the architecture.
        huggingface: the directory with the configuration and the tokenizer files.
        prefix: of its keys, where the checkpoint holds others too.
        tied_head: the key of a head that was stored though it is the embedding, and is stored again.
        as_imported: the weights have the dtypes of the original, so what its config.json says of them still stands.
    """

    weights: Path
    card: ArchitectureCard
    huggingface: Path
    prefix: str = ""
    tied_head: str | None = None
    as_imported: bool = False

    def nbytes(self, dtype: torch.dtype | None) -> int:
        """Bytes that its weights take when exported in `dtype`, or as they are stored where it is None."""
        with StreamedReader(self.weights) as stored:
            return sum(tensor.nbytes for tensor in tensor_shapes(self, stored, dtype).values())


def find_specialist(directory: Path, manifest: Manifest, name: str | None) -> StoredSpecialist:
    """Where the weights of a specialist are: in the checkpoint itself, or in the one that it refers to.

    Args:
        directory: the checkpoint.
        manifest: its manifest.
        name: the specialist; None only for a converted specialist, which is one.

    Raises:
        UserError: there is no such specialist, or the converted checkpoint is gone.
    """
    if manifest.kind == "specialist":
        if name is not None:
            raise UserError(f"{directory} is one specialist, not a run's checkpoint; leave --specialist {name} out")
        _, card = read_specialist(directory)
        tied_head = manifest.specialist.get("tied_head")
        if tied_head not in (None, *OUTPUT_HEAD.sources):
            raise UserError(f"{directory}: the manifest's tied_head {tied_head!r} is damaged; convert it again")
        return StoredSpecialist(
            directory / WEIGHTS,
            card,
            directory / HUGGINGFACE,
            tied_head=tied_head,
            as_imported=manifest.specialist.get("rounded_to") is None,
        )
    sources = {source.name: source for source in sources_from_checkpoint(directory, manifest)}
    if name not in sources:
        raise UserError(f"--specialist {name}: {directory} has the specialists {', '.join(sources)}; give one of them")
    source = sources[name]
    if manifest.kind == "warmup":  # its specialists are frozen: they are the converted ones
        return find_specialist(source.checkpoint, read_manifest(source.checkpoint, "specialist"), None)
    return StoredSpecialist(directory / WEIGHTS, source.card, source.huggingface, prefix=f"specialists.{name}.")


def tensor_shapes(
    specialist: StoredSpecialist, stored: StreamedReader, dtype: torch.dtype | None
) -> dict[str, TensorShape]:
    """What an export of a specialist will hold.

    Args:
        specialist: whose weights.
        stored: its weights, opened.
        dtype: of the export; None for the dtypes they are stored in.

    Returns:
        Hugging Face key → shape and dtype.

    Raises:
        UserError: the checkpoint holds other weights than the architecture's.
    """
    card, prefix = specialist.card, specialist.prefix
    assignments = assign(card)
    expected = {prefix + assignment.key for assignment in assignments}
    found = {key for key in stored.shapes if key.startswith(prefix)}
    if wrong := sorted(expected ^ found):
        what = "lacks" if wrong[0] in expected else "has the unexpected"
        raise UserError(
            f"{specialist.weights} {what} {wrong[0]}, which does not fit its architecture card; convert the "
            "specialist again"
        )
    shapes = {}
    for assignment in assignments:
        key = prefix + assignment.key
        shape, wanted = stored.shapes[key], assignment.mapping.shape(card)
        rows_behind = 0
        if assignment.layer is not None:
            wanted = (card.num_layers, *wanted)
        elif assignment.mapping.padded:
            rows_behind = max(0, shape[0] - wanted[0])
        if shape != (wanted[0] + rows_behind, *wanted[1:]):
            raise UserError(
                f"{specialist.weights}: {key} has shape {list(shape)}, its card implies {list(wanted)}; convert it "
                "again"
            )
        for source, source_shape in zip(assignment.sources, assignment.mapping.source_shapes(card), strict=True):
            shapes[source] = TensorShape(source_shape, dtype or stored.dtypes[key])
    if specialist.tied_head is not None:
        shapes[specialist.tied_head] = shapes[EMBEDDING.sources[0]]
    return shapes
