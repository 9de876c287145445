"""The time of a step: each pipeline rank's operations at a given share of the peak rate, and what it waits for.

What sending takes is `planning.communication`; memory is `planning.memory` and `planning.activations`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megafuser.config.compute import PrecisionConfig
from megafuser.config.schema import RunConfig
from megafuser.planning.communication import Communication, data_seconds, pipeline_seconds, tensor_seconds
from megafuser.planning.flops import attention_flops, head_flops, layer_flops
from megafuser.planning.gpus import Gpu
from megafuser.planning.memory import StateBytes
from megafuser.planning.parameters import rank_chunks
from megafuser.planning.pipeline_schedule import bubble
from megafuser.planning.workload import Workload
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.pipeline_split import layers_per_chunk

_OFFLOAD_BYTES = 36
"""Of each offloaded parameter in a step: 8 over PCIe, 28 read and written by Adam on the host."""
_MASTER = 4
_HOST_RATE = 25e9
"""Bytes a second of PCIe, and of host memory to each of a node's ranks; an assumption."""
_MFU = {"bf16": 0.4, "fp8": 0.25}
"""Shares of each format's own peak rate where no other is given; assumptions. FP8 doubles the rate of the products, and
leaves casts, norms and attention as they are."""


def default_mfu(precision: PrecisionConfig) -> float:
    """Share of the peak rate that a rank is taken to reach while it computes."""
    return _MFU["fp8" if precision.fp8 else "bf16"]


@dataclass(frozen=True)
class StepTime:
    """One step of a stage.

    Attributes:
        flops: useful operations over all ranks, as `tflops_per_device` counts them.
        seconds: expected; None where the peak rate is unknown.
        host_seconds: of them, moving and updating offloaded states.
        communication: of them, sending and receiving.
        tokens_per_second: real tokens, over all ranks.
        bubble: time that pipeline ranks wait for the first and last micro-batches, over the time they work.
        imbalance: work of the busiest pipeline rank over the mean.
        mfu: useful operations over what all GPUs could do at their bf16 (under FP8: FP8) peak in that time.
    """

    flops: float
    seconds: float | None
    host_seconds: float
    communication: Communication
    tokens_per_second: float | None
    bubble: float
    imbalance: float
    mfu: float | None


@dataclass(frozen=True)
class _Work:
    """Forward operations of a pipeline rank in a step of all data-parallel ranks, by what speed they run at."""

    products: float
    attention: float
    heads: float

    @property
    def total(self) -> float:
        return self.products + self.attention + self.heads


def step_time(
    cards: Mapping[str, ArchitectureCard], config: RunConfig, work: Workload, *,
    trained: Mapping[str, ArchitectureCard], load_balance: bool = False, gpu: Gpu | None,
    gpus: int, mfu: float, states: Sequence[StateBytes],
) -> StepTime:  # fmt: skip
    """Operations and time of one step.

    Each pipeline rank's operations at `mfu` times the peak, and the activations that it exchanges; the pace is that of
    the busiest rank, the pipeline's bubble comes on top, and so does what happens once a step. Recomputed operations
    take time and are not counted as useful.

    Args:
        cards: the specialists.
        config: the run's configuration.
        work: the step.
        trained: those specialists that have a backward; none in warm-up.
        load_balance: whether a pass without output heads precedes the step's own; it is not counted as useful.
        gpu: what computes; None where its rate is unknown.
        gpus: how many.
        mfu: share of the peak rate that a rank reaches while it computes.
        states: of each pipeline rank.
    """
    parallel = config.parallel
    ranks = range(parallel.pipeline)
    pairs = [
        tuple(_rank_work(list(those.values()), config, work, rank) for those in (cards, trained)) for rank in ranks
    ]
    totals = [forward.total + 2 * backward.total for forward, backward in pairs]
    flops = sum(totals)
    waits = bubble(pipeline=parallel.pipeline, virtual=parallel.virtual_pipeline, micro_batches=work.micro_batches)
    imbalance = max(totals) * parallel.pipeline / flops
    if gpu is None:
        return StepTime(flops, None, 0.0, Communication(), None, waits, imbalance, None)
    forwards = 2.0 if load_balance else 1.0
    share = gpus / parallel.pipeline  # ranks that do a pipeline rank's work together
    computing = [_seconds(forward, backward, config, gpu, forwards) / (share * mfu) for forward, backward in pairs]
    exchanging = [
        tensor_seconds(
            cards, trained, config, gpu=gpu, gpus=gpus, rank=rank, width=work.width, forwards=forwards,
            peak=_fast(config, gpu),
        )
        for rank in ranks
    ]  # fmt: skip
    busiest = max(ranks, key=lambda rank: computing[rank] + work.micro_batches * exchanging[rank][0])
    exchanged, beside = (work.micro_batches * seconds for seconds in exchanging[busiest])
    sending = work.micro_batches * pipeline_seconds(
        cards, config, gpu=gpu, gpus=gpus, width=work.width, passes=forwards + bool(trained)
    )
    waited, hidden = max(
        data_seconds(
            own, config, gpu=gpu, gpus=gpus, joint=bool(trained), micro_batch=computing[rank] / work.micro_batches
        )
        for rank, own in enumerate(states)
    )
    communication = Communication(exchanged * (1 + waits), sending * (1 + waits), waited, hidden, beside)
    on_host = max(own.host_masters for own in states) / _MASTER * _OFFLOAD_BYTES / _HOST_RATE
    total = computing[busiest] * (1 + waits) + communication.total + on_host
    return StepTime(
        flops=flops,
        seconds=total,
        host_seconds=on_host,
        communication=communication,
        tokens_per_second=work.tokens / total,
        bubble=waits,
        imbalance=imbalance,
        mfu=flops / (total * gpus * _fast(config, gpu)),
    )


def _fast(config: RunConfig, gpu: Gpu) -> float:
    """Operations a second of the layers' products, at the peak."""
    return gpu.fp8 if config.precision.fp8 and gpu.fp8 else gpu.bf16


def _seconds(forward: _Work, backward: _Work, config: RunConfig, gpu: Gpu, forwards: float) -> float:
    """What a pipeline rank's work takes one GPU at the peak rates."""
    # of those that have a backward: two products for each of the forward's, and what it computes again
    layers = 2.0 + (config.memory.recompute == "full")
    attention = 2.0 + (config.memory.recompute != "none")
    slow = forwards * forward.attention + attention * backward.attention + forward.heads + 2 * backward.heads
    return (forwards * forward.products + layers * backward.products) / _fast(config, gpu) + slow / gpu.bf16


def _rank_work(cards: Sequence[ArchitectureCard], config: RunConfig, work: Workload, rank: int) -> _Work:
    parallel = config.parallel
    chunks = rank_chunks(parallel, rank)
    has_heads = chunks[-1] == parallel.pipeline * parallel.virtual_pipeline - 1
    products = attention = heads = 0.0
    for card in cards:
        dealt = layers_per_chunk(card.num_layers, parallel)
        piece = dataclasses.replace(card, num_layers=sum(dealt[chunk] for chunk in chunks))
        products += layer_flops(piece, work.tokens)
        attention += attention_flops(piece, work.squares)
        heads += head_flops(piece, work.response_tokens) if has_heads else 0.0
    return _Work(products, attention, heads)
