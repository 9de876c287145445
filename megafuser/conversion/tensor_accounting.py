"""The plan of a conversion: every source tensor goes into exactly one target, or the conversion is refused.

The tables of names are in `families`; moving is `conversion.hf_to_mcore` and `conversion.mcore_to_hf`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megafuser.errors import UserError
from megafuser.families.family import BUFFERS, EMBEDDING, OUTPUT_HEAD
from megafuser.families.known import FAMILIES
from megafuser.families.weight_mapping import Shape, WeightMapping
from megafuser.specialist.card import ArchitectureCard


@dataclass(frozen=True)
class Assignment:
    """One tensor on the megatron-core side: a mapping applied to one layer.

    Attributes:
        mapping: how.
        layer: which layer; None outside the layers.
        sources: the Hugging Face keys.
    """

    mapping: WeightMapping
    layer: int | None
    sources: tuple[str, ...]

    @property
    def key(self) -> str:
        """The distributed checkpoint's key, which all layers share."""
        return self.mapping.mcore


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that a conversion does, in either direction.

    Attributes:
        assignments: one for each tensor on the megatron-core side.
        tied_head: source key of an output head that must equal the embedding and is not stored; None without one.
        embedding: source key of the embedding.
    """

    assignments: tuple[Assignment, ...]
    tied_head: str | None
    embedding: str

    @property
    def sources(self) -> list[str]:
        """The Hugging Face keys that are read, a stored tied head included."""
        tied = [] if self.tied_head is None else [self.tied_head]
        return [key for assignment in self.assignments for key in assignment.sources] + tied


def plan_conversion(card: ArchitectureCard, shapes: Mapping[str, Shape], origin: str) -> ConversionPlan:
    """Assigns every source tensor to exactly one target, or says which one does not fit.

    Args:
        card: the architecture; its family chooses the table.
        shapes: source key → shape.
        origin: names the source in messages.

    Raises:
        UserError: a key is missing or unexpected, or a shape contradicts the configuration.
    """
    assignments = assign(card)
    expected = {
        key: shape
        for assignment in assignments
        for key, shape in zip(assignment.sources, assignment.mapping.source_shapes(card), strict=True)
    }
    embedding = EMBEDDING.sources[0]
    tied_head = None
    if card.tie_word_embeddings:
        tied_head = next((key for key in OUTPUT_HEAD.sources if key in shapes), None)
    if tied_head is not None:
        expected[tied_head] = expected[embedding]
    ignored = {key.format(layer=layer) for key in BUFFERS for layer in range(card.num_layers)}
    _refuse_difference(expected, {key: shape for key, shape in shapes.items() if key not in ignored}, origin)
    return ConversionPlan(assignments, tied_head, embedding)


def assign(card: ArchitectureCard) -> tuple[Assignment, ...]:
    """Every tensor that the architecture stores; a head that is the embedding is not stored.

    Raises:
        UserError: the family is unknown, as in a checkpoint of another version.
    """
    if card.family not in FAMILIES:
        raise UserError(
            f"architecture card: unknown family {card.family!r} (known: {', '.join(FAMILIES)}); update megafuser, or "
            "convert the specialist again"
        )
    return tuple(
        assignment
        for mapping in FAMILIES[card.family].mappings
        if mapping.exists(card) and not (mapping == OUTPUT_HEAD and card.tie_word_embeddings)
        for assignment in _expand(mapping, card)
    )


def _expand(mapping: WeightMapping, card: ArchitectureCard) -> Iterator[Assignment]:
    if not mapping.per_layer:
        yield Assignment(mapping, None, mapping.sources)
        return
    for layer in range(card.num_layers):
        yield Assignment(mapping, layer, tuple(key.format(layer=layer) for key in mapping.sources))


def _refuse_difference(expected: Mapping[str, Shape], found: Mapping[str, Shape], origin: str) -> None:
    if missing := [key for key in expected if key not in found]:
        raise UserError(
            f"{origin} lacks {_first(missing)}, so its config.json and its weights do not belong together; download "
            "both again"
        )
    if unexpected := [key for key in found if key not in expected]:
        raise UserError(
            f"{origin} has {_first(unexpected)}, which its config.json does not explain; correct one of them, since "
            "nothing is dropped"
        )
    for key, shape in expected.items():
        if found[key] != shape:
            raise UserError(
                f"{origin}: {key} has shape {list(found[key])}, but its config.json implies {list(shape)}; correct it"
            )


def _first(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more weights"
