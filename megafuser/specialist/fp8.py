"""What FP8 matrix products ask of shapes: the multiples that rows and weights must have on every rank."""

from megafuser.config.compute import ParallelConfig, PrecisionConfig


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
    return 128 if precision.fp8 == "blockwise" and gathers else 16


def width_multiple(parallel: ParallelConfig, precision: PrecisionConfig) -> int:
    """The number that the width of a packed row must be a multiple of, in positions.

    Under sequence parallelism each tensor-parallel rank holds an equal part of the row, and FP8 asks for aligned parts.

    Args:
        parallel: the layout.
        precision: the FP8 recipe, if any.
    """
    ranks = parallel.tensor if parallel.sequence else 1
    return ranks * alignment(parallel, precision, gathered=True)
