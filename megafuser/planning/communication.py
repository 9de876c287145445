"""Seconds that a rank spends on what it sends and receives in a step: bytes over the links' rates.

Rates are the links' own (`megafuser.planning.gpus`); collectives move bytes as rings do, (n − 1) / n of a tensor for a
gathering or a reduction to shares, twice that for a whole reduction. Ranks lie as megatron-core has them: tensor
parallelism fastest, then data, then pipeline. The time of computing is `planning.compute`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megafuser.config.schema import RunConfig
from megafuser.planning.gpus import PER_NODE, Gpu
from megafuser.planning.memory import ELEMENT_BYTES, StateBytes
from megafuser.planning.parameters import rank_chunks
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.fp8 import RECIPES
from megafuser.specialist.pipeline_split import layers_per_chunk


@dataclass(frozen=True)
class Communication:
    """Seconds of a step on the busiest rank, while it does not compute.

    Attributes:
        tensor: activations between the ranks that share a layer, the pipeline's bubble included.
        pipeline: hidden streams and their gradients between stages, likewise; none where schedules interleave, which
            send while they compute.
        data: gradients and updated weights between replicas.
        hidden: more of the last, while the rank computes (`overlap_grad_reduce`, `overlap_param_gather`).
        tensor_hidden: more of the first, beside the backward's products.
    """

    tensor: float = 0.0
    pipeline: float = 0.0
    data: float = 0.0
    hidden: float = 0.0
    tensor_hidden: float = 0.0

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


@dataclass(frozen=True)
class _Moved:
    """Bytes that one half of a layer, attention or MLP, moves of each element of a stream [S, h], as rings count them.

    A half begins with a column-parallel product and ends with a row-parallel one. Under sequence parallelism the first
    gathers its input and the second reduces its output to shares; backward, the second gathers the gradient of its
    output and the first reduces that of its input to shares, having gathered the input once more. Otherwise the second
    reduces its output whole, and the first the gradient of its input.

    megatron-core (`LinearWithGradAccumulationAndAsyncCommunication`, tensor_parallel/layers.py) and Transformer Engine
    (`_Linear` and `_LayerNormLinear`, pytorch/module) do so in one order: what a product needs, or what came out of
    one, is waited for, but for the column-parallel product's backward. That gathers its input while it computes the
    input's gradient, and reduces this while it computes the weight's.

    Attributes:
        forward: waited for, and as much when layers are computed again.
        backward: waited for.
        beside_input_gradient: sent while the column-parallel product's input gradient is computed.
        beside_weight_gradient: sent while its weight's is.
    """

    forward: float
    backward: float
    beside_input_gradient: float
    beside_weight_gradient: float


def _moved(config: RunConfig) -> _Moved:
    """What a half of a layer moves; reductions are never in FP8, gatherings are where the products are."""
    wide = float(ELEMENT_BYTES[config.precision.dtype])
    if not config.parallel.sequence:
        return _Moved(2 * wide, 0.0, 0.0, 2 * wide)
    if config.precision.fp8 is None:
        return _Moved(2 * wide, wide, wide, wide)
    recipe = RECIPES[config.precision.fp8]
    gathered = recipe.gathered_bytes
    return _Moved(gathered + wide, gathered * recipe.gathered_gradients, gathered, wide)


def tensor_seconds(
    cards: Mapping[str, ArchitectureCard], trained: Mapping[str, ArchitectureCard], config: RunConfig,
    *, gpu: Gpu, gpus: int, rank: int, width: int, forwards: float, peak: float,
) -> tuple[float, float]:  # fmt: skip
    """What one micro-batch's activations take in a pipeline rank's layers: seconds waited, and those behind products.

    Products hide what they would take at the peak: they come nearer to it than everything that a rank computes, of
    which a plan's `mfu` is the share. Embedding, heads and gate are left out: together they have less than one layer.

    Args:
        cards: the specialists.
        trained: those that have a backward.
        config: the run's configuration.
        gpu: what they are on.
        gpus: how many.
        rank: pipeline rank.
        width: positions of a row, S.
        forwards: passes forward of all specialists.
        peak: operations a second of the layers' products.
    """
    tensor = config.parallel.tensor
    if tensor == 1:
        return 0.0, 0.0
    moved = _moved(config)
    again = float(config.memory.recompute == "full")
    rate = group_rate(gpu, gpus, stride=1, count=tensor)
    waited = hidden = 0.0
    for name, card in cards.items():
        layers = _layers(card, config, rank)
        byte = (tensor - 1) / tensor * width * card.hidden_size / rate  # seconds of one byte of each element
        waited += layers * forwards * 2 * moved.forward * byte
        if name not in trained:
            continue
        waited += layers * 2 * (again * moved.forward + moved.backward) * byte
        for outputs in (card.qkv_width, 2 * card.ffn_hidden_size):
            product = 2.0 * width * card.hidden_size * outputs / tensor / peak
            for sending in (moved.beside_input_gradient * byte, moved.beside_weight_gradient * byte):
                waited += layers * max(0.0, sending - product)
                hidden += layers * min(sending, product)
    return waited, hidden


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


def _layers(card: ArchitectureCard, config: RunConfig, rank: int) -> int:
    """A specialist's layers on a pipeline rank."""
    dealt = layers_per_chunk(card.num_layers, config.parallel)
    return sum(dealt[chunk] for chunk in rank_chunks(config.parallel, rank))
