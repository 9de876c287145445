"""Phi-3 and Phi-4: a Llama whose queries, keys and values are one matrix, and whose MLP's gate and up are another.

Those with the whole context in every layer and plain RoPE, Phi-4 (14B) for one. Phi-3-mini's attention slides, its long
variants stretch RoPE by LongRoPE, and Phi-4-mini turns a part of each head only: they are refused by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megafuser.families.family import (
    GATE_AND_UP,
    HF,
    QUERY_KEY_VALUE,
    Family,
    decoder_weights,
    slides_with_a_window,
)
from megafuser.families.weight_mapping import RowRange, Shape, WeightMapping
from megafuser.specialist.card import ArchitectureCard


@dataclass(frozen=True)
class Stacked(WeightMapping):
    """A mapping whose sources stand below one another in a single weight.

    Attributes:
        of: the mapping.
    """

    of: WeightMapping

    def source_shapes(self, card: ArchitectureCard) -> tuple[Shape, ...]:
        """One shape: the sum of the parts' rows."""
        shapes = self.of.source_shapes(card)
        return ((sum(shape[0] for shape in shapes), *shapes[0][1:]),)

    def row_ranges(self, card: ArchitectureCard) -> Iterator[RowRange]:
        """The mapping's own, each moved down by the parts above it."""
        starts, rows = [], 0
        for shape in self.of.source_shapes(card):
            starts.append(rows)
            rows += shape[0]
        for part in self.of.row_ranges(card):
            yield RowRange(0, starts[part.source] + part.start, starts[part.source] + part.stop)


FAMILY = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    mappings=decoder_weights(
        query_key_value=Stacked(QUERY_KEY_VALUE.mcore, (HF + "self_attn.qkv_proj.weight",), of=QUERY_KEY_VALUE),
        gate_and_up=Stacked(GATE_AND_UP.mcore, (HF + "mlp.gate_up_proj.weight",), of=GATE_AND_UP),
    ),
    slides=slides_with_a_window,
)
