"""The way back: what an import and an export give is what there was, bit for bit and byte for byte."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megafuser.checkpoint import row_blocks, stream_writer
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.conversion import safetensors_writer
from megafuser.conversion.export import export_checkpoint
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.conversion.mcore_to_hf import export_huggingface_files, export_weights, verify_export
from megafuser.conversion.stored_specialist import StoredSpecialist
from megafuser.conversion.verification import compare_logits
from megafuser.errors import UserError
from megafuser.families.known import FAMILIES
from megafuser.specialist.card import ArchitectureCard
from tests.tiny_models import make_llama, make_model

LLAMA3 = {"rope_type": "llama3", "factor": 3.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, multi-head": {"num_key_value_heads": 4},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, attention biases": {"attention_bias": True},
    "llama, MLP biases": {"mlp_bias": True},
    "llama, all biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "llama, linear RoPE": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
    "llama, llama3 RoPE": {
        "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 48, "rope_theta": 5e5},
        "extra_tokens": 3,
    },
    "mistral": {"family": "mistral", "sliding_window": None, "head_dim": 12},
    "qwen2": {"family": "qwen2"},
    "qwen2, tied": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"family": "qwen3", "head_dim": 16},
    "qwen3, attention biases": {"family": "qwen3", "head_dim": 16, "attention_bias": True},
    "phi3": {"family": "phi3", "pad_token_id": 0},
    "phi3, multi-head": {"family": "phi3", "pad_token_id": 0, "num_key_value_heads": 4},
}


def split_everything(patch: pytest.MonkeyPatch) -> None:
    """Blocks that split every matrix, at rows that no head or half ends at."""
    patch.setattr(row_blocks, "BLOCK_BYTES", 1000)
    patch.setattr(stream_writer, "BYTES_PER_FILE", 50_000)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    split_everything(monkeypatch)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist, not to be changed by a test."""
    root = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        split_everything(patch)
        import_specialist(make_llama(root / "model"), root / "specialist")
    return root / "specialist"


def _stored(directory: Path) -> StoredSpecialist:
    manifest, card = read_specialist(directory)
    tied_head = manifest.content["tied_head"]
    return StoredSpecialist(directory / "weights", card, directory / "huggingface", tied_head=tied_head)


def _export(directory: Path, out: Path, dtype: torch.dtype | None = None) -> StoredSpecialist:
    stored = _stored(directory)
    out.mkdir()
    export_weights(stored, out, dtype)
    export_huggingface_files(stored, out, dtype)
    verify_export(stored, out, dtype)
    return stored


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in directory.glob("*.safetensors") for key, value in load_file(path).items()}


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype
        and torch.equal(first[key].view(torch.uint8), second[key].view(torch.uint8))
        for key in first
    )


def test_every_family_is_tried() -> None:
    assert {settings.get("family", "llama") for settings in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(tmp_path: Path, variant: str) -> None:
    settings: dict[str, Any] = {"family": "llama", "num_hidden_layers": 2} | VARIANTS[variant]
    model = make_model(tmp_path / "model", **settings)
    lines: list[str] = []
    import_specialist(model, tmp_path / "specialist", verify="logits", report=lines.append)
    assert float(lines[1].rsplit(" ", 1)[1]) <= 1e-4
    stored = _export(tmp_path / "specialist", tmp_path / "back")
    assert _equal(_tensors(tmp_path / "back"), _tensors(model))
    files = {path.name for path in model.iterdir()}
    assert files == {path.name for path in (tmp_path / "back").iterdir()}
    for name in files - {"model.safetensors"}:
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes(), name
    assert "logits" in compare_logits(tmp_path / "back", stored.card, stored.weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_llama(tmp_path / "model")
    source = {key: value.to(dtype) for key, value in _tensors(model).items()}
    save_file(source, model / "model.safetensors", metadata={"format": "pt"})
    import_specialist(model, tmp_path / "specialist")
    _export(tmp_path / "specialist", tmp_path / "kept")
    assert _equal(_tensors(tmp_path / "kept"), source)
    _export(tmp_path / "specialist", tmp_path / "wide", torch.float32)
    assert _equal(_tensors(tmp_path / "wide"), {key: value.float() for key, value in source.items()})
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert config == json.loads((model / "config.json").read_text()) | {"dtype": "float32"}


def test_weights_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model")
    tensors = _tensors(model)
    tensors["model.layers.2.self_attn.v_proj.weight"][3, 5] = -1e5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    import_specialist(model, tmp_path / "specialist")
    with pytest.raises(UserError, match=r"layers.2.self_attn.v_proj.weight has weights up to 1e\+05, which float16"):
        _export(tmp_path / "specialist", tmp_path / "narrow", torch.float16)
    _export(tmp_path / "specialist", tmp_path / "wide", torch.bfloat16)


def test_a_config_that_was_wrong_about_the_dtype_comes_back_as_it_was(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"dtype": "float16"}
    (model / "config.json").write_text(json.dumps(config))
    import_specialist(model, tmp_path / "specialist")
    export_checkpoint(tmp_path / "specialist", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (model / "config.json").read_bytes()
    import_specialist(model, tmp_path / "rounded", dtype="bf16")
    export_checkpoint(tmp_path / "rounded", tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("tied_head", ["model.norm.weight", ["lm_head.weight"], 3])
def test_a_manifest_with_a_wrong_tied_head_is_refused(converted: Path, tmp_path: Path, tied_head: object) -> None:
    shutil.copytree(converted, tmp_path / "specialist")
    path = tmp_path / "specialist" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["content"]["tied_head"] = tied_head
    del manifest["hash"]  # as of older ones
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"tied_head .* is damaged"):
        export_checkpoint(tmp_path / "specialist", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_shards_and_mixed_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 40_000)
    model = make_llama(tmp_path / "model")
    mixed = {key: value if "norm" in key else value.bfloat16() for key, value in _tensors(model).items()}
    mixed["model.norm.weight"][3] = float("nan")
    save_file(mixed, model / "model.safetensors", metadata={"format": "pt"})
    import_specialist(model, tmp_path / "specialist")
    _export(tmp_path / "specialist", tmp_path / "back")
    assert _equal(_tensors(tmp_path / "back"), mixed)
    shards = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(shards) > 2 and all(path.stat().st_size <= 40_000 + 4_000 for path in shards)
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in mixed.values())
    for path in shards:
        with safe_open(path, "pt") as file:
            assert {key for key, name in index["weight_map"].items() if name == path.name} == set(file.keys())
            assert file.metadata() == {"format": "pt", "written_by": "megafuser"}


def test_a_head_that_is_stored_though_tied_comes_back(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", tie_word_embeddings=True)
    tensors = _tensors(model)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    import_specialist(model, tmp_path / "specialist")
    stored = _export(tmp_path / "specialist", tmp_path / "back")
    assert _equal(_tensors(tmp_path / "back"), tensors)
    tensors["lm_head.weight"][300, 7] += 1e-3
    save_file(tensors, tmp_path / "back" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head.weight was not written as it was read"):
        verify_export(stored, tmp_path / "back")


def test_a_read_only_checkpoint_gives_files_that_can_be_changed(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    import_specialist(model, tmp_path / "specialist")
    carried = tmp_path / "specialist" / "huggingface"
    for path in (*carried.rglob("*"), carried):
        path.chmod(0o555 if path.is_dir() else 0o444)
    _export(tmp_path / "specialist", tmp_path / "back", torch.bfloat16)
    assert (tmp_path / "back" / "additional_chat_templates" / "rag.jinja").read_text() == "{{ messages }}"
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "back", *(tmp_path / "back").rglob("*")))


def test_wrong_rows_are_caught(converted: Path, tmp_path: Path) -> None:
    stored = _stored(converted)
    (tmp_path / "back").mkdir()
    export_weights(stored, tmp_path / "back")
    export_huggingface_files(stored, tmp_path / "back")
    tensors = _tensors(tmp_path / "back")
    tensors["model.layers.1.self_attn.k_proj.weight"][5, 3] += 1e-3
    save_file(tensors, tmp_path / "back" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model.layers.1.self_attn.k_proj.weight was not written as it was read"):
        verify_export(stored, tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, r"has shape \[4, 32\], its card implies \[3, 32\]"),
        ({"vocab_size": 321}, r"word_embeddings.weight has shape \[320, 32\], its card implies \[321, 32\]"),
        ({"ffn_hidden_size": 32}, r"linear_fc1.weight has shape \[4, 128, 32\], its card implies \[4, 64, 32\]"),
        ({"family": "gpt"}, r"unknown family .gpt. .known: llama, mistral.*; update megafuser"),
        ({"mlp_bias": True}, r"lacks decoder.layers.mlp.linear_fc1.bias"),
        ({"tie_word_embeddings": True}, r"has the unexpected output_layer.weight"),
    ],
)
def test_card_that_does_not_fit(converted: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stored = _stored(converted)
    wrong = StoredSpecialist(
        stored.weights, ArchitectureCard.from_dict(stored.card.to_dict() | change), stored.huggingface
    )
    with pytest.raises(UserError, match=message):
        export_weights(wrong, shutil.copytree(converted, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.safetensors"))
