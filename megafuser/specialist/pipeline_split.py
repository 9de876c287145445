"""How many layers of a specialist each chunk of the pipeline gets.

What else a layout must suit is checked by `specialist.layout_checks`.
"""

from megafuser.config.compute import ParallelConfig


def layers_per_chunk(num_layers: int, parallel: ParallelConfig) -> list[int]:
    """Deals a specialist's layers to the pipeline's chunks, as evenly as they go.

    Args:
        num_layers: of the specialist.
        parallel: pipeline and virtual pipeline sizes.

    Returns:
        A number for each of the pipeline · virtual_pipeline chunks, in pipeline order: chunk i is virtual stage
        i // pipeline of rank i % pipeline. The remainder goes to the first chunks, one layer each, since the last
        one has the gate and the output heads.

    Raises:
        ValueError: there are fewer layers than chunks.
    """
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if num_layers < chunks:
        raise ValueError(f"{num_layers} layers are fewer than {chunks} chunks")
    share, remainder = divmod(num_layers, chunks)
    return [share + (index < remainder) for index in range(chunks)]
