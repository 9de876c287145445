"""What a specialist is built of: rows that do not depend on the layout, and the settings of its card."""

import pytest
import torch

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.build import build_specialist
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.padded_vocabulary import padded_vocab_size
from tests.unit.specialist.small_card import CARD


@pytest.mark.parametrize(("rows", "padded"), [(1, 128), (128, 128), (129, 256), (32000, 32000), (32016, 32128)])
def test_padded_rows_do_not_depend_on_the_layout(rows: int, padded: int) -> None:
    assert {padded_vocab_size(rows, tensor) for tensor in (1, 2, 4, 8, 16, 32, 64, 128)} == {padded}


@pytest.mark.parametrize("tensor", [3, 5, 6, 12])
def test_other_tensor_sizes_divide_the_rows(tensor: int) -> None:
    rows = padded_vocab_size(32001, tensor)
    assert rows % tensor == 0 and rows % 128 == 0 and rows >= 32001


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_model_is_what_the_card_says(dtype: str) -> None:
    with single_process_cpu():
        model = build_specialist(
            CARD, parallel=ParallelConfig(), precision=PrecisionConfig(dtype=dtype), backend="torch"
        )
        assert {parameter.dtype for parameter in model.parameters()} == {
            torch.float32 if dtype == "fp32" else torch.bfloat16
        }
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert shapes["embedding.word_embeddings.weight"] == shapes["output_layer.weight"] == (384, 48)
        assert shapes["decoder.layers.1.self_attention.linear_qkv.weight"] == ((6 + 2 * 2) * 16, 48)
        assert not any(name.endswith("bias") for name in shapes)
        padding = 2 * (384 - CARD.vocab_size) * 48
        assert sum(parameter.numel() for parameter in model.parameters()) - padding == CARD.parameter_count()
        exponents = torch.arange(0, 16, 2).float() / 16
        torch.testing.assert_close(model.rotary_pos_emb.inv_freq, 1e6**-exponents)
        assert model.decoder.layers[0].input_layernorm.eps == model.decoder.final_layernorm.eps == 1e-3
        assert model.decoder.layers[0].self_attention.core_attention.scale is None


def test_a_tied_head_is_the_embedding() -> None:
    tied = ArchitectureCard.from_dict(CARD.to_dict() | {"tie_word_embeddings": True})
    with single_process_cpu():
        model = build_specialist(
            tied, parallel=ParallelConfig(), precision=PrecisionConfig(dtype="fp32"), backend="torch"
        )
        assert model.head_weight() is model.embedding.word_embeddings.weight


def test_more_rows_on_request() -> None:
    with single_process_cpu():
        model = build_specialist(
            CARD,
            parallel=ParallelConfig(),
            precision=PrecisionConfig(dtype="fp32"),
            backend="torch",
            padded_vocabulary=512,
        )
        assert model.head_weight().shape == (512, 48)
