"""Layouts that do not fit are refused with the quantity that does not fit, and the nearest layout that does."""

import dataclasses
from typing import Any

import pytest

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.config.stages import WarmupConfig
from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.layout_checks import check_layout, nearest_divisor, nearest_layout
from tests.unit.specialist.small_card import CARD

OTHER = dataclasses.replace(CARD, num_layers=5, num_attention_heads=8, num_query_groups=8)
CARDS = {"code": CARD, "text": OTHER}
ONE_GROUP = {"code": dataclasses.replace(CARD, num_attention_heads=8, num_query_groups=1, num_layers=4)}


def config(width: int = 64, **sections: Any) -> RunConfig:
    """A configuration; no test reads its paths."""
    domains = {"text": DomainConfig(train=("t.jsonl",), valid=("v.jsonl",))}
    return RunConfig(
        run_dir="run",
        specialists=tuple(SpecialistConfig(name, name, "plain") for name in CARDS),
        data=DataConfig(domains=domains, sequence_length=width),
        **sections,
    )


@pytest.mark.parametrize(
    ("sections", "world", "says"),
    [
        (
            {"parallel": ParallelConfig(tensor=4)},
            4,
            "parallel.tensor: 4 does not divide the 6 attention heads of specialist code; "
            "the nearest that works for all specialists on 4 processes is parallel.tensor=2",
        ),
        (
            {"parallel": ParallelConfig(tensor=3)},
            3,
            "parallel.tensor: 3 neither divides the 2 key-value heads of specialist code nor is a multiple of them; "
            "the nearest that works for all specialists on 3 processes is parallel.tensor=1",
        ),
        # 2 suits one specialist alone, and the other's 5 layers would suit 4 stages
        (
            {"parallel": ParallelConfig(pipeline=4)},
            4,
            "parallel.pipeline: 4 stages need at least 4 layers, and specialist code has 2; "
            "the nearest that works for all specialists on 4 processes is parallel.pipeline=2",
        ),
        (
            {"parallel": ParallelConfig(pipeline=2, virtual_pipeline=2)},
            2,
            "parallel.virtual_pipeline: 2 chunks on each of 2 stages need at least 4 layers, and specialist code has "
            "2; the nearest that works for all specialists on 2 processes is parallel.virtual_pipeline=1",
        ),
        (
            {"parallel": ParallelConfig(tensor=2, sequence=True), "width": 63},
            2,
            "data.sequence_length: 63 is not a multiple of 2, which parallel.sequence (of 2 ranks) needs; "
            "the nearest that is is 64",
        ),
        (
            {"precision": PrecisionConfig(fp8="tensorwise"), "width": 100},
            1,
            "data.sequence_length: 100 is not a multiple of 16, which precision.fp8 tensorwise needs; "
            "the nearest that is is 96",
        ),
        (
            {"precision": PrecisionConfig(fp8="tensorwise"), "parallel": ParallelConfig(tensor=2)},
            2,
            "precision.fp8: tensorwise needs multiples of 16 on every rank, but the 80 MLP units of specialist code "
            "leave 40; the nearest that works for all specialists on 2 processes is parallel.tensor=1",
        ),
        (
            {
                "precision": PrecisionConfig(fp8="blockwise"),
                "parallel": ParallelConfig(tensor=2, sequence=True),
            },
            2,
            "precision.fp8: blockwise needs multiples of 128 on every rank, but the 48 hidden units of specialist code "
            "leave 48; the nearest that works for all specialists on 2 processes is parallel.tensor=1",
        ),
        (
            {"memory": MemoryConfig(recompute="full", recompute_layers=2), "parallel": ParallelConfig(pipeline=2)},
            2,
            "memory.recompute_layers: 2 does not divide the 1 layers of specialist code in a chunk of the pipeline; "
            "the nearest that does for all is 1",
        ),
    ],
)
def test_refused(sections: dict[str, Any], world: int, says: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_layout(CARDS, config(**sections), world)
    assert says in str(refusal.value)


def test_row_widths_of_stages_are_looked_at_too() -> None:
    warmup = WarmupConfig(row_width=129)
    settings = config(parallel=ParallelConfig(tensor=2, sequence=True), warmup=warmup)
    with pytest.raises(UserError, match=r"warmup.row_width: 129 is not a multiple of 2"):
        check_layout(CARDS, settings, 2)


@pytest.mark.parametrize(
    ("cards", "sections", "world"),
    [
        (CARDS, {"width": 63}, 1),
        (CARDS, {"parallel": ParallelConfig(tensor=2, pipeline=2), "width": 63}, 8),
        (CARDS, {"parallel": ParallelConfig(tensor=2, sequence=True)}, 2),
        (CARDS, {"parallel": ParallelConfig(sequence=True), "width": 63}, 1),
        (CARDS, {"precision": PrecisionConfig(fp8="blockwise")}, 1),
        # ranks that share a key-value head
        (ONE_GROUP, {"parallel": ParallelConfig(tensor=4)}, 4),
        (ONE_GROUP, {"parallel": ParallelConfig(pipeline=2, virtual_pipeline=2)}, 2),
        (CARDS, {"memory": MemoryConfig(recompute="full"), "parallel": ParallelConfig(pipeline=2)}, 2),
    ],
)
def test_accepted(cards: dict[str, ArchitectureCard], sections: dict[str, Any], world: int) -> None:
    check_layout(cards, config(**sections), world)


def test_llama_13b_takes_blockwise_fp8_at_eight_ranks_with_sequence_parallelism() -> None:
    """13824 MLP units leave 1728 to a rank, which are no whole blocks; what is gathered is: 5120 and the rows."""
    large = {
        "hidden_size": 5120,
        "ffn_hidden_size": 13824,
        "num_attention_heads": 40,
        "num_query_groups": 40,
        "kv_channels": 128,
        "num_layers": 40,
    }
    cards = {"code": dataclasses.replace(CARD, **large)}
    layout = ParallelConfig(tensor=8, pipeline=2, sequence=True)
    settings = config(4096, parallel=layout, precision=PrecisionConfig(fp8="blockwise"))
    check_layout(cards, settings, 16)
    with pytest.raises(UserError, match=r"data.sequence_length: 4160 is not a multiple of 1024"):
        check_layout(cards, dataclasses.replace(settings, data=config(4160).data), 16)


def test_what_is_advised_is_accepted() -> None:
    """Every layout of up to 8 ranks is accepted, or the advice is, in the same world."""
    for tensor in range(1, 9):
        for pipeline in range(1, 9 // tensor + 1):
            for virtual in (1, 2) if pipeline > 1 else (1,):
                wanted = ParallelConfig(tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual)
                world = tensor * pipeline
                nearest = nearest_layout(CARDS, wanted, PrecisionConfig(), world)
                assert nearest is not None and world % (nearest.tensor * nearest.pipeline) == 0
                check_layout(CARDS, config(parallel=nearest), world)
                try:
                    check_layout(CARDS, config(parallel=wanted), world)
                except UserError:
                    assert nearest != wanted
                else:
                    assert nearest == wanted


@pytest.mark.parametrize(("amount", "wanted", "nearest"), [(40, 16, 20), (40, 8, 8), (6, 4, 3), (2, 9, 2), (7, 3, 1)])
def test_nearest_divisor(amount: int, wanted: int, nearest: int) -> None:
    assert nearest_divisor(amount, wanted) == nearest
