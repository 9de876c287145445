"""FP8 matrix products: the recipes, which one a specialist computes in, and the multiples that its shapes must have.

Whether a GPU can do it is asked by `runtime.device`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megafuser.config.compute import ParallelConfig, PrecisionConfig

_ALIGNMENT = 16


@dataclass(frozen=True)
class Recipe:
    """How Transformer Engine scales tensors to FP8; `precision.fp8` names one of `RECIPES`.

    Attributes:
        format: of forward and backward, as megatron-core names it: `hybrid` is E4M3 forward and E5M2 backward.
        block: how many elements share a scale, in float32; None: a whole tensor has one.
    """

    format: Literal["hybrid", "e4m3"]
    block: int | None = None

    @property
    def gathered_bytes(self) -> float:
        """Of an element that is gathered in FP8, with its part of a block's scale."""
        return 1.0 + 4 / self.block if self.block else 1.0

    @property
    def gathered_gradients(self) -> int:
        """How many times a gradient is gathered: one is needed by rows and by columns, which are blocks of their own.

        With a scale for a whole tensor one is the other's transpose, made on the spot.
        """
        return 2 if self.block else 1

    @property
    def gathered_multiple(self) -> int:
        """What a dimension that is gathered in FP8 must be a multiple of: whole blocks."""
        return self.block or _ALIGNMENT


RECIPES = {"delayed": Recipe("hybrid"), "tensorwise": Recipe("hybrid"), "blockwise": Recipe("e4m3", block=128)}


def recipe(precision: PrecisionConfig, *, trains: bool) -> str | None:
    """The recipe that a specialist computes in; None outside FP8.

    Transformer Engine keeps up the scales of `delayed` where gradients are enabled, and nowhere else (`autocast_exit`
    of its quantization.py): a specialist without a backward would stay at the scales that it was built with, all 1. It
    takes its scales from the tensor at hand instead, which is `tensorwise`, in the same formats.

    Args:
        precision: the FP8 recipe that the configuration asks for, if any.
        trains: whether the specialist has a backward.
    """
    return "tensorwise" if precision.fp8 == "delayed" and not trains else precision.fp8


def recipes_in_use(precision: PrecisionConfig, trains: Mapping[str, bool]) -> str | None:
    """The recipes that the specialists compute in, in words; None outside FP8.

    Args:
        precision: the FP8 recipe that the configuration asks for, if any.
        trains: by specialist, whether it has a backward.
    """
    others = [name for name, has_backward in trains.items() if recipe(precision, trains=has_backward) != precision.fp8]
    if not others:
        return precision.fp8
    if len(others) == len(trains):
        return f"tensorwise in place of {precision.fp8}, since no specialist trains"
    return f"{precision.fp8}, but tensorwise for {', '.join(others)}, frozen"


def alignment(parallel: ParallelConfig, precision: PrecisionConfig, *, gathered: bool = False) -> int:
    """The number that a dimension of a matrix product must be a multiple of on a rank; 1 outside FP8.

    Transformer Engine asserts leading dimensions that are multiples of 8 and last ones of 16; the products of the
    backward take the transposed matrices, so 16 it is for both. A tensor that `blockwise` gathers in FP8 must consist
    of whole blocks of 128 (`assert_dim_for_all_gather`); in a product the last block may be a smaller one, as in
    Transformer Engine's own tests of it.

    Args:
        parallel: the layout.
        precision: the FP8 recipe, if any.
        gathered: the dimension is one of activations that sequence parallelism gathers: hidden size, rows.
    """
    if precision.fp8 is None:
        return 1
    gathers = gathered and parallel.sequence and parallel.tensor > 1
    return RECIPES[precision.fp8].gathered_multiple if gathers else _ALIGNMENT


def width_multiple(parallel: ParallelConfig, precision: PrecisionConfig) -> int:
    """The number that the width of a packed row must be a multiple of, in positions.

    Under sequence parallelism each tensor-parallel rank holds an equal part of the row, and FP8 asks for aligned parts.

    Args:
        parallel: the layout.
        precision: the FP8 recipe, if any.
    """
    ranks = parallel.tensor if parallel.sequence else 1
    return ranks * alignment(parallel, precision, gathered=True)
