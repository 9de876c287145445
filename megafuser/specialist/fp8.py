"""What FP8 matrix products ask of shapes: the multiples that rows and weights must have on every rank."""

from megafuser.config.compute import ParallelConfig, PrecisionConfig


def alignment(precision: PrecisionConfig) -> int:
    """The number that every dimension of a matrix product on a rank must be a multiple of; 1 outside FP8.

    Transformer Engine asserts leading dimensions that are multiples of 8 and last ones of 16; the products of the
    backward take the transposed matrices, so 16 it is for both. The blocks of `blockwise` are 128 wide.
    """
    if precision.fp8 is None:
        return 1
    return 128 if precision.fp8 == "blockwise" else 16


def row_multiple(parallel: ParallelConfig, precision: PrecisionConfig) -> int:
    """The number that the width of a packed row must be a multiple of, in positions.

    Under sequence parallelism each tensor-parallel rank holds an equal part of the row, and FP8 asks for aligned parts.

    Args:
        parallel: the layout.
        precision: the FP8 recipe, if any.
    """
    ranks = parallel.tensor if parallel.sequence else 1
    return ranks * alignment(precision)
