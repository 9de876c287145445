"""Whether the specialists can be split as the configuration says; if not, the reason and the nearest layout that works.

Arithmetic on cards and configuration alone: nothing is loaded, neither weights nor torch. Whether it fits into memory
is found by `planning.plan`.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.fp8 import alignment, width_multiple
from megafuser.specialist.pipeline_split import layers_per_chunk

Cards = Mapping[str, ArchitectureCard]


def check_layout(cards: Cards, config: RunConfig, world: int) -> None:
    """Refuses a layout that cannot work, before anything is loaded.

    Args:
        cards: the specialists' architectures, by name.
        config: layout, number formats, recompute and row widths.
        world: number of processes; a multiple of tensor · pipeline.

    Raises:
        UserError: names the quantity that does not fit, and what is nearest and does for all specialists.
    """
    for name, card in cards.items():
        if reason := _misfit(name, card, config.parallel, config.precision):
            raise UserError(f"{reason}; {_advice(cards, config, world)}")
    _check_widths(config)
    _check_recompute(cards, config)


def _misfit(name: str, card: ArchitectureCard, parallel: ParallelConfig, precision: PrecisionConfig) -> str | None:
    """What of a specialist does not go into the layout."""
    tensor, groups = parallel.tensor, card.num_query_groups
    # With more ranks than key-value heads, megatron-core splits a head's projection and gathers it again.
    if groups % tensor and tensor % groups:
        return (
            f"parallel.tensor: {tensor} neither divides the {groups} key-value heads of specialist {name} "
            "nor is a multiple of them"
        )
    split = {
        "attention heads": card.num_attention_heads,
        "MLP units": card.ffn_hidden_size,
        "rows of queries, keys and values": card.qkv_width,
    }
    for what, amount in split.items():
        if amount % tensor:
            return f"parallel.tensor: {tensor} does not divide the {amount} {what} of specialist {name}"
    for what, (amount, ranks) in _products(card).items():
        multiple = alignment(parallel, precision, gathered=not ranks)
        if amount // (tensor if ranks else 1) % multiple:
            return (
                f"precision.fp8: {precision.fp8} needs multiples of {multiple} on every rank, but the {amount} "
                f"{what} of specialist {name} leave {amount // (tensor if ranks else 1)}"
            )
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if card.num_layers < chunks:
        key = f"parallel.pipeline: {parallel.pipeline} stages"
        if parallel.virtual_pipeline > 1:
            key = f"parallel.virtual_pipeline: {parallel.virtual_pipeline} chunks on each of {parallel.pipeline} stages"
        return f"{key} need at least {chunks} layers, and specialist {name} has {card.num_layers}"
    return None


def _products(card: ArchitectureCard) -> dict[str, tuple[int, bool]]:
    """The dimensions of the layers' matrix products, and whether tensor parallelism splits them.

    Those that it does not split are gathered under sequence parallelism.
    """
    return {
        "hidden units": (card.hidden_size, False),
        "rows of queries, keys and values": (card.qkv_width, True),
        "columns of attention's output": (card.query_width, True),
        "MLP units": (card.ffn_hidden_size, True),
    }


def _advice(cards: Cards, config: RunConfig, world: int) -> str:
    nearest = nearest_layout(cards, config.parallel, config.precision, world)
    if nearest is None:
        return f"no layout of {world} processes suits all specialists; set precision.fp8=null"
    keys = ("tensor", "pipeline", "virtual_pipeline")
    changed = [key for key in keys if getattr(nearest, key) != getattr(config.parallel, key)]
    settings = " ".join(f"parallel.{key}={getattr(nearest, key)}" for key in changed)
    return f"the nearest that works for all specialists on {world} processes is {settings}"


def nearest_layout(
    cards: Cards, parallel: ParallelConfig, precision: PrecisionConfig, world: int
) -> ParallelConfig | None:
    """The layout that all specialists can take and that is the fewest doublings away; None where there is none.

    Args:
        cards: the specialists' architectures, by name.
        parallel: the layout that is wanted.
        precision: its FP8 recipe, if any, limits the layout.
        world: number of processes, of which tensor · pipeline must be a divisor.
    """

    def distance(candidate: ParallelConfig) -> tuple[float, int]:
        sizes = ("tensor", "pipeline", "virtual_pipeline")
        ratios = (getattr(candidate, size) / getattr(parallel, size) for size in sizes)
        return round(sum(abs(math.log2(ratio)) for ratio in ratios), 6), candidate.tensor * candidate.pipeline

    fitting = (
        candidate
        for candidate in _candidates(parallel, world, min(card.num_layers for card in cards.values()))
        if not any(_misfit(name, card, candidate, precision) for name, card in cards.items())
    )
    return min(fitting, key=distance, default=None)


def _candidates(parallel: ParallelConfig, world: int, layers: int) -> Iterator[ParallelConfig]:
    sizes = [size for size in range(1, world + 1) if world % size == 0]
    for tensor, pipeline in itertools.product(sizes, sizes):
        if world % (tensor * pipeline):
            continue
        most = min(parallel.virtual_pipeline, layers // pipeline) if pipeline > 1 else 1
        for virtual in range(1, most + 1):
            yield dataclasses.replace(parallel, tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual)


def _check_widths(config: RunConfig) -> None:
    """Rows must be split evenly among ranks, in parts that FP8 can multiply."""
    multiple = width_multiple(config.parallel, config.precision)
    widths = {"data.sequence_length": config.data.sequence_length}
    for name, stage in (("warmup", config.warmup), ("joint", config.joint)):
        if stage.row_width is not None:
            widths[f"{name}.row_width"] = stage.row_width
    for key, width in widths.items():
        if width % multiple:
            needs = [f"parallel.sequence (of {config.parallel.tensor} ranks)"] if config.parallel.sequence else []
            needs += [f"precision.fp8 {config.precision.fp8}"] if config.precision.fp8 else []
            raise UserError(
                f"{key}: {width} is not a multiple of {multiple}, which {' with '.join(needs)} needs; "
                f"the nearest that is is {max(multiple, round(width / multiple) * multiple)}"
            )


def _check_recompute(cards: Cards, config: RunConfig) -> None:
    """megatron-core recomputes equal groups of layers."""
    if config.memory.recompute != "full":
        return
    group = config.memory.recompute_layers
    depths = {name: layers_per_chunk(card.num_layers, config.parallel) for name, card in cards.items()}
    common = math.gcd(*itertools.chain(*depths.values()))
    for name, layers in depths.items():
        for amount in layers:
            if amount % group:
                raise UserError(
                    f"memory.recompute_layers: {group} does not divide the {amount} layers of specialist {name} in a "
                    f"chunk of the pipeline; the nearest that does for all is {nearest_divisor(common, group)}"
                )


def nearest_divisor(amount: int, wanted: int) -> int:
    """The divisor of `amount` that is nearest to `wanted`, the smaller of two."""
    return min((n for n in range(1, amount + 1) if amount % n == 0), key=lambda n: (abs(n - wanted), n))
