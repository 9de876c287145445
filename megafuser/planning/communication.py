"""Seconds that a rank spends on what it sends and receives in a step: bytes over the links' rates.

Rates are the links' own (`megafuser.planning.gpus`); collectives move bytes as rings do, (n − 1) / n of a tensor for a
gathering or a reduction to shares, twice that for a whole reduction. Ranks lie as megatron-core has them: tensor
parallelism fastest, then data, then pipeline.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megafuser.config.schema import RunConfig
from megafuser.planning.gpus import PER_NODE, Gpu
from megafuser.planning.memory import ELEMENT_BYTES, StateBytes
from megafuser.planning.parameters import rank_chunks
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.pipeline_split import layers_per_chunk

_HALVES = 4
"""Gatherings and reductions to shares in a layer's forward, two of each; as many wait in its backward.

Without sequence parallelism two whole reductions move the same bytes. The inputs that a backward gathers once more
under sequence parallelism come while a product is computed. An upper bound: the two reductions of the backward may
travel beside the weight gradients' products, and under FP8 Transformer Engine gathers one byte an element.
"""


@dataclass(frozen=True)
class Communication:
    """Seconds of a step on the busiest rank, while it does not compute.

    Attributes:
        tensor: activations between the ranks that share a layer, the pipeline's bubble included.
        pipeline: hidden streams and their gradients between stages, likewise; none where schedules interleave, which
            send while they compute.
        data: gradients and updated weights between replicas.
        hidden: more of the last, while the rank computes (`overlap_grad_reduce`, `overlap_param_gather`).
    """

    tensor: float = 0.0
    pipeline: float = 0.0
    data: float = 0.0
    hidden: float = 0.0

    @property
    def total(self) -> float:
        """What a step is longer for it."""
        return self.tensor + self.pipeline + self.data


def group_rate(gpu: Gpu, gpus: int, *, stride: int, count: int) -> float:
    """Bytes a second of a collective among `count` ranks, `stride` apart.

    Between nodes each of a group's ranks on a node uses the network card of its own.
    """
    if gpus <= PER_NODE or PER_NODE % (stride * count) == 0:
        return gpu.link
    return min(gpu.link, max(1, PER_NODE // stride) * gpu.network)


def tensor_seconds(
    cards: Mapping[str, ArchitectureCard], trained: Mapping[str, ArchitectureCard], config: RunConfig,
    *, gpu: Gpu, gpus: int, rank: int, width: int, forwards: float,
) -> float:  # fmt: skip
    """What one micro-batch's activations take in the layers of a pipeline rank.

    4 (TP − 1) / TP · S · h · e bytes for a layer's forward, as many for its backward and for a forward that is computed
    again. Embedding, heads and gate are left out: together they have less than one layer.

    Args:
        cards: the specialists.
        trained: those that have a backward.
        config: the run's configuration.
        gpu: what they are on.
        gpus: how many.
        rank: pipeline rank.
        width: positions of a row, S.
        forwards: passes forward of all specialists.
    """
    tensor = config.parallel.tensor
    if tensor == 1:
        return 0.0
    again = 1.0 + (config.memory.recompute == "full")
    passes = forwards * _layer_widths(cards, config, rank) + again * _layer_widths(trained, config, rank)
    moved = _HALVES * (tensor - 1) / tensor * width * ELEMENT_BYTES[config.precision.dtype] * passes
    return moved / group_rate(gpu, gpus, stride=1, count=tensor)


def pipeline_seconds(
    cards: Mapping[str, ArchitectureCard], config: RunConfig, *, gpu: Gpu, gpus: int, width: int, passes: float
) -> float:
    """What one micro-batch's K streams side by side take from a stage to the next: S · Σ h · e bytes, S / TP under SP.

    Args:
        cards: the specialists.
        config: the run's configuration.
        gpu: what they are on.
        gpus: how many.
        width: positions of a row, S.
        passes: forwards and backwards.
    """
    parallel = config.parallel
    if parallel.pipeline == 1 or parallel.virtual_pipeline > 1:
        return 0.0
    positions = width / parallel.tensor if parallel.sequence else width
    moved = positions * sum(card.hidden_size for card in cards.values()) * ELEMENT_BYTES[config.precision.dtype]
    return passes * moved / (gpu.link if gpus <= PER_NODE else gpu.network)


def data_seconds(
    states: StateBytes, config: RunConfig, *, gpu: Gpu, gpus: int, joint: bool, micro_batch: float
) -> tuple[float, float]:
    """What gradients and updated weights take once a step: seconds that are waited, and those behind computing.

    Float32 gradients are reduced to shares and weights gathered where the optimizer is distributed, else gradients are
    reduced whole. What overlaps does so with one micro-batch: a third of it is forward, two thirds are backward.

    Args:
        states: of the rank.
        config: the run's configuration.
        gpu: what they are on.
        gpus: how many.
        joint: whether specialists train; the gate alone is reduced whole, and nothing overlaps.
        micro_batch: seconds that the rank computes for a row.
    """
    parallel = config.parallel
    ranks = gpus // (parallel.tensor * parallel.pipeline)
    if ranks == 1:
        return 0.0, 0.0
    rate = group_rate(gpu, gpus, stride=parallel.tensor, count=ranks)
    reduce = (ranks - 1) / ranks * states.gradients / rate
    if not (joint and config.optimizer.distributed):
        reduce, gather = 2 * reduce, 0.0
    else:
        gather = reduce * ELEMENT_BYTES[config.precision.dtype] / ELEMENT_BYTES["fp32"]
    hidden = 0.0
    if joint and parallel.overlap_grad_reduce:
        hidden += min(reduce, micro_batch * 2 / 3)
    if joint and parallel.overlap_param_gather:
        hidden += min(gather, micro_batch / 3)
    return reduce + gather - hidden, hidden


def _layer_widths(cards: Mapping[str, ArchitectureCard], config: RunConfig, rank: int) -> float:
    """Hidden sizes of all layers of a pipeline rank, added up."""
    chunks = rank_chunks(config.parallel, rank)
    total = 0
    for card in cards.values():
        dealt = layers_per_chunk(card.num_layers, config.parallel)
        total += card.hidden_size * sum(dealt[chunk] for chunk in chunks)
    return float(total)
