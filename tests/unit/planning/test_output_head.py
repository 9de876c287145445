"""The mixture loss's part of a plan."""

from collections.abc import Collection

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.planning.activations import Row, Setting
from megafuser.planning.output_head import loss_chunk, loss_saved
from tests.unit.planning.architectures import ULTRAFUSER_13B

ROW = Row(width=4096, used=4096, response_tokens=2048, longest=4096)


def setting(chunk_mib: int, tensor: int = 8) -> Setting:
    memory = MemoryConfig(loss_chunk_mib=chunk_mib)
    return Setting(ParallelConfig(tensor=tensor), PrecisionConfig(), memory, "transformer_engine")


def test_a_chunk_is_no_larger_than_its_budget_or_than_all_tokens() -> None:
    assert loss_chunk(ULTRAFUSER_13B, ROW, setting(64)) == 64 << 20
    whole = loss_chunk(ULTRAFUSER_13B, ROW, setting(10**6))
    assert 64 << 20 < whole < 1 << 30
    assert loss_chunk(ULTRAFUSER_13B, ROW, setting(10**6, tensor=4)) == 2 * whole


def test_only_heads_grow_with_the_vocabulary() -> None:
    trained: tuple[Collection[str], ...] = ((), ULTRAFUSER_13B)
    warmup, joint = (loss_saved(ULTRAFUSER_13B, ROW, setting(256), 512, trained=names) for names in trained)
    assert warmup < 7 * ROW.response_tokens * 3 * 5632
    assert joint - warmup == 2 * (ROW.response_tokens + 32128 / 8) * 3 * 5120
