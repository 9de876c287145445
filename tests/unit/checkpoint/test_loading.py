"""Loading a specialist into a model: dtypes, padding, and what does not fit. Layouts are under tests/parallel."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megafuser.checkpoint.loading import load_specialist_weights
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.errors import UserError
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.build import Specialist, build_specialist
from megafuser.specialist.card import ArchitectureCard
from tests.tiny_models import make_llama

VOCABULARY = 325


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`untied` is a Hugging Face directory, `untied.mcore` the specialist made of it."""
    root = tmp_path_factory.mktemp("models")
    make_llama(root / "untied", extra_tokens=5, head_dim=16)
    import_specialist(root / "untied", root / "untied.mcore")
    return root


def _build(card: ArchitectureCard, parallel: ParallelConfig, dtype: str = "fp32", **rows: int) -> Specialist:
    model = build_specialist(card, parallel=parallel, precision=PrecisionConfig(dtype=dtype), backend="torch", **rows)
    for parameter in model.parameters():
        parameter.data.fill_(7.0)  # what stays seven was not loaded
    return model


def test_weights_take_the_models_dtype(models: Path) -> None:
    with single_process_cpu():
        _, card = read_specialist(models / "untied.mcore")
        model = _build(card, ParallelConfig(), "bf16")
        load_specialist_weights(model, models / "untied.mcore")
    original = load_file(models / "untied" / "model.safetensors")["model.layers.3.mlp.down_proj.weight"]
    loaded = model.decoder.layers[3].mlp.linear_fc2.weight
    assert loaded.dtype == torch.bfloat16 and torch.equal(loaded, original.bfloat16())


def test_more_padding_is_zero(models: Path) -> None:
    with single_process_cpu():
        _, card = read_specialist(models / "untied.mcore")
        model = _build(card, ParallelConfig(), padded_vocabulary=512)
        load_specialist_weights(model, models / "untied.mcore")
    for table in (model.embedding.word_embeddings.weight, model.output_layer.weight):
        assert table.shape[0] == 512 and torch.all(table[VOCABULARY:] == 0) and torch.all(table[:VOCABULARY] != 7)


def test_no_vocabulary_row_is_dropped_silently(models: Path) -> None:
    with single_process_cpu():
        _, card = read_specialist(models / "untied.mcore")
        model = _build(card, ParallelConfig(), padded_vocabulary=VOCABULARY - 1)
        with pytest.raises(UserError, match=r"has shape \[325, 32\], but the model has room for \[324, 32\]"):
            load_specialist_weights(model, models / "untied.mcore")


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 2},
        {"hidden_size": 16},
        {"ffn_hidden_size": 32},
        {"kv_channels": 8},
        {"tie_word_embeddings": True},
    ],
)
def test_card_of_another_model_is_refused(models: Path, change: dict) -> None:
    with single_process_cpu():
        _, card = read_specialist(models / "untied.mcore")
        model = _build(dataclasses.replace(card, **change), ParallelConfig())
        with pytest.raises(UserError) as caught:
            load_specialist_weights(model, models / "untied.mcore")
    assert "\n" not in str(caught.value) and "untied.mcore" in str(caught.value)


def test_other_directories_are_refused(models: Path) -> None:
    with pytest.raises(UserError, match=r"convert it with tools/convert_hf_to_mcore.py"):
        read_specialist(models / "untied")
