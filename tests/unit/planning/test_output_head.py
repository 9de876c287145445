"""The mixture loss's part of a plan."""

import dataclasses
from collections.abc import Collection

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.planning.activations import Row, Setting
from megafuser.planning.output_head import head_product, loss_chunk, loss_saved
from megafuser.planning.plan import plan_stage
from tests.unit.planning.architectures import ULTRAFUSER_13B
from tests.unit.planning.made_up_tasks import make_task

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


def test_one_head_s_product_is_in_float32_beside_the_logits() -> None:
    """32,016 rows, padded to 32,128, of width 5120."""
    assert head_product(ULTRAFUSER_13B, setting(256), trained=ULTRAFUSER_13B) == 4 * 32128 / 8 * 5120
    assert head_product(ULTRAFUSER_13B, setting(256, tensor=1), trained={"math"}) == 4 * 32128 * 5120
    assert head_product(ULTRAFUSER_13B, setting(256), trained=()) == 0
    plain = dataclasses.replace(setting(256), precision=PrecisionConfig(dtype="fp32"))
    assert head_product(ULTRAFUSER_13B, plain, trained=ULTRAFUSER_13B) == 0


def test_a_plan_has_it_where_heads_train_on_a_gpu() -> None:
    product = 4 * 32128 / 8 * 5120
    logits = {
        (gpu, stage): plan_stage(make_task(gpu=gpu, parallel=ParallelConfig(tensor=8, pipeline=2)), stage)
        .ranks[1]
        .logits
        for gpu in ("h100", None)
        for stage in ("warmup", "joint")
    }
    assert logits["h100", "joint"] == logits[None, "joint"] + product
    assert logits["h100", "warmup"] == logits[None, "warmup"]
