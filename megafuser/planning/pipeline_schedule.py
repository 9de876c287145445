"""What megatron-core's pipeline schedules keep at the same time, and how long they wait.

How much one micro-batch leaves is `planning.activations` and `planning.output_head`.
"""

from collections.abc import Sequence


def peak_activations(chunk_bytes: Sequence[float], *, pipeline: int, rank: int, micro_batches: int) -> float:
    """Most bytes that a rank keeps for backwards to come, under (interleaved) 1F1B.

    Source: `megatron/core/pipeline_parallel/schedules.py`. Forwards go through the chunks in groups of `pipeline`
    micro-batches, backwards likewise from the last chunk on; after the warm-up they alternate.

    Args:
        chunk_bytes: what one micro-batch leaves in each of the rank's chunks.
        pipeline: pipeline size.
        rank: pipeline rank.
        micro_batches: of a step; with several chunks a multiple of the pipeline size.
    """
    chunks = len(chunk_bytes)
    total = micro_batches * chunks
    warmup = pipeline - rank - 1 if chunks == 1 else 2 * (pipeline - rank - 1) + (chunks - 1) * pipeline
    order = [index // pipeline % chunks for index in range(total)] if chunks > 1 else [0] * total
    kept = peak = 0.0
    for index in range(total):
        kept += chunk_bytes[order[index]]
        peak = max(peak, kept)
        if index >= warmup:
            kept -= chunk_bytes[chunks - 1 - order[index - warmup]]
    return peak


def bubble(*, pipeline: int, virtual: int, micro_batches: int) -> float:
    """Time that a rank waits over the time that it works: (p - 1) / (m · v) (Narayanan et al., 2021, 2.2)."""
    return (pipeline - 1) / (micro_batches * virtual)
