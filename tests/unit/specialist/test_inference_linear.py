"""The layers of a model that only predicts compute what megatron-core's do, and PyTorch in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist import inference_linear
from megafuser.specialist.build import build_specialist
from megafuser.specialist.inference_linear import (
    FEW_ROWS,
    PredictingColumnParallelLinear,
    PredictingRowParallelLinear,
    product,
)
from megafuser.specialist.transformer_config import transformer_config
from tests.unit.specialist.small_card import CARD

SHAPES = [(1,), (1, 1), (2,), (8, 1), (FEW_ROWS,), (FEW_ROWS + 1, 1), (3, 7), (0,)]


@pytest.fixture
def one_process() -> Iterator[None]:
    with single_process_cpu():
        yield


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("onednn", [False, True])
def test_the_product_is_linears(
    shape: tuple[int, ...], biased: bool, dtype: torch.dtype, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:
        monkeypatch.setattr(inference_linear, "_HAS_ONEDNN", False)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(*shape, 48, generator=generator).to(dtype)
    weight, bias = (torch.randn(*size, generator=generator).to(dtype) for size in ((331, 48), (331,)))
    expected = torch.nn.functional.linear(rows.double(), weight.double(), bias.double() if biased else None)
    found = product(rows, weight, bias if biased else None)
    assert found.dtype is dtype
    error = 1e-5 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(found.double(), expected, atol=error, rtol=error)


def test_onednn_is_what_takes_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above compares `linear` with itself. CI's PyTorch has it."""
    taken: list[int] = []
    real = torch.ops.mkldnn._linear_pointwise

    def noted(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(len(rows))
        return real(rows, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
    weight = torch.ones(4, 6)
    for count in (1, 2, 3, 5, 9, FEW_ROWS - 1, FEW_ROWS, FEW_ROWS + 1):
        product(torch.ones(count, 6), weight)
    product(torch.ones(2, 6, dtype=torch.bfloat16), weight.bfloat16())
    assert taken == [2, 4, 8, 16, FEW_ROWS, FEW_ROWS]  # few numbers of rows, as it keeps code for each


@pytest.mark.parametrize("skip_bias_add", [False, True])
@pytest.mark.parametrize(
    ("plain", "own", "more"),
    [
        (ColumnParallelLinear, PredictingColumnParallelLinear, {"gather_output": False}),
        (RowParallelLinear, PredictingRowParallelLinear, {"input_is_parallel": True}),
    ],
)
def test_a_layer_gives_what_megatrons_gives(
    plain: Any, own: Any, more: dict[str, bool], skip_bias_add: bool, one_process: None
) -> None:
    config = transformer_config(
        CARD, parallel=ParallelConfig(), precision=PrecisionConfig(dtype="fp32"), backend="torch"
    )
    layers = [
        kind(48, 80, config=config, init_method=torch.nn.init.normal_, bias=True, skip_bias_add=skip_bias_add, **more)
        for kind in (plain, own)
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in layers[0].parameters():
            tensor.normal_(generator=generator)
        layers[1].load_state_dict(layers[0].state_dict())
        rows = torch.randn(5, 1, 48, generator=generator)
        expected, found = (layer(rows) for layer in layers)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None) == (not skip_bias_add)
    if skip_bias_add:
        assert torch.equal(found[1], expected[1])


def test_only_a_model_that_predicts_has_them(one_process: None) -> None:
    def kinds(cached: bool) -> set[type]:
        specialist = build_specialist(
            CARD,
            parallel=ParallelConfig(),
            precision=PrecisionConfig(dtype="fp32"),
            backend="torch",
            cached=cached,
        )
        return {type(module) for module in specialist.decoder.modules() if "Linear" in type(module).__name__}

    assert kinds(cached=True) == {PredictingColumnParallelLinear, PredictingRowParallelLinear}
    assert kinds(cached=False) == {ColumnParallelLinear, RowParallelLinear}
