"""Importing a specialist: equal to its source bit by bit, complete or absent, and wrong on purpose means refused."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from megafuser.checkpoint.index import stored_shapes
from megafuser.checkpoint.manifest import content_hash, read_manifest, verify_files
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.conversion import hf_to_mcore
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.conversion.logit_difference import LOGITS_TOLERANCE
from megafuser.conversion.options import DTYPES
from megafuser.errors import UserError
from megafuser.families import weight_mapping
from megafuser.families.config_json import card_from_hf_config
from megafuser.families.weight_mapping import RowRange
from tests.tiny_models import SHARED_VOCABULARY, make_llama

VARIANTS: dict[str, dict] = {
    "grouped": {},
    "multi_head": {"num_key_value_heads": 4},
    "one_group": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "wide_heads": {"head_dim": 16},
    "theta_1e6_extra_rows": {"rope_theta": 1e6, "extra_tokens": 16, "rms_norm_eps": 1e-6},
    "short": {"max_position_embeddings": 24},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "model")


def _tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def _change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_hugging_faces(tmp_path: Path, variant: str) -> None:
    model = make_llama(tmp_path / "model", seed=3, **VARIANTS[variant])
    lines: list[str] = []
    import_specialist(model, tmp_path / "out", verify="logits", report=lines.append)
    assert "equal bit by bit" in lines[0]
    assert float(lines[1].rsplit(" ", 1)[1]) <= 1e-4


def test_output(llama: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in llama.iterdir()}
    manifest = import_specialist(llama, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before
    assert read_manifest(tmp_path / "out", "specialist") == manifest
    assert verify_files(tmp_path / "out", manifest) == []
    assert manifest.dtype == "fp32"
    _, card = read_specialist(tmp_path / "out")
    assert card == card_from_hf_config(json.loads((llama / "config.json").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "huggingface")
    assert tokenizer("a fox").input_ids == AutoTokenizer.from_pretrained(llama)("a fox").input_ids
    assert stored_shapes(tmp_path / "out" / "weights")["output_layer.weight"] == (SHARED_VOCABULARY, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_same_conversion_has_the_same_name_and_other_weights_another(llama: Path, copy: Path, tmp_path: Path) -> None:
    first = import_specialist(llama, tmp_path / "first")
    again = import_specialist(llama, tmp_path / "again", verify="none")
    _change_weights(copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    other = import_specialist(copy, tmp_path / "other")
    assert content_hash(first) == content_hash(again) != content_hash(other)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_dtype(llama: Path, tmp_path: Path, dtype: str) -> None:
    manifest = import_specialist(llama, tmp_path / "out", dtype=dtype, verify="logits")
    assert manifest.dtype == dtype
    wanted = DTYPES[dtype]
    original = load_file(llama / "model.safetensors")["lm_head.weight"]
    with StreamedReader(tmp_path / "out" / "weights") as stored:
        assert stored.dtypes["output_layer.weight"] is wanted
        assert torch.equal(stored.rows("output_layer.weight", None, 0, len(original)), original.to(wanted))


def test_keep_keeps_each_dtype(copy: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({key: value.bfloat16() for key, value in tensors.items() if "norm" not in key})

    _change_weights(copy, halve)
    assert import_specialist(copy, tmp_path / "out").dtype == "mixed"
    _change_weights(copy, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 32)}))
    with pytest.raises(UserError, match=r"mixes dtypes \(model.layers.0.mlp.gate_proj.weight is bf16, .* --dtype"):
        import_specialist(copy, tmp_path / "two")
    assert import_specialist(copy, tmp_path / "two", dtype="fp16").dtype == "fp16"


def test_wrong_theta_is_caught(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(config: dict) -> object:
        return dataclasses.replace(card_from_hf_config(config), rotary_base=1.1e4)

    monkeypatch.setattr(hf_to_mcore, "card_from_hf_config", wrong)
    with pytest.raises(UserError, match=r"fp32 logits of .* differ by .* nothing was kept"):
        import_specialist(llama, tmp_path / "out", verify="logits")
    assert _tree(tmp_path) == []


def test_swapped_query_and_key_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many key as query heads the shapes agree, and even the bitwise check passes: only the logits tell."""

    def swapped(self, card):
        for part in row_ranges(self, card):
            yield RowRange((1, 0, 2)[part.source], part.start, part.stop)

    row_ranges = weight_mapping.QueryKeyValue.row_ranges
    model = make_llama(tmp_path / "model", num_key_value_heads=4)
    monkeypatch.setattr(weight_mapping.QueryKeyValue, "row_ranges", swapped)
    import_specialist(model, tmp_path / "unnoticed", verify="weights")
    with pytest.raises(UserError, match=r"logits of .* differ by"):
        import_specialist(model, tmp_path / "out", verify="logits")
    assert not (tmp_path / "out").exists()


def test_large_logits_may_differ_by_more_and_a_swapped_head_is_caught_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of logits of thousands, rounding alone is beyond what passes for small ones; two heads of one layer are not."""
    model = make_llama(tmp_path / "model", num_hidden_layers=1)
    _change_weights(model, lambda tensors: tensors["lm_head.weight"].mul_(1000))
    lines: list[str] = []
    import_specialist(model, tmp_path / "right", verify="logits", report=lines.append)
    assert float(lines[1].rsplit(" ", 1)[1]) > LOGITS_TOLERANCE

    def swapped(self, card):
        first, *rest = row_ranges(self, card)
        middle = (first.start + first.stop) // 2
        yield RowRange(first.source, middle, first.stop)
        yield RowRange(first.source, first.start, middle)
        yield from rest

    row_ranges = weight_mapping.QueryKeyValue.row_ranges
    monkeypatch.setattr(weight_mapping.QueryKeyValue, "row_ranges", swapped)
    import_specialist(model, tmp_path / "unnoticed", verify="weights")
    with pytest.raises(UserError, match=r"logits of .* differ by"):
        import_specialist(model, tmp_path / "out", verify="logits")
    assert not (tmp_path / "out").exists()


def test_damage_while_writing_is_caught(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging(directory: Path, *arguments: object) -> dict[str, str]:
        hashes = write_streamed(directory, *arguments)
        path = directory / "__0_0.distcp"
        content = bytearray(path.read_bytes())
        content[content.index(row) + 5] ^= 1
        path.write_bytes(content)
        return hashes

    write_streamed = hf_to_mcore.write_streamed
    row = load_file(llama / "model.safetensors")["model.layers.2.mlp.down_proj.weight"][3].numpy().tobytes()
    monkeypatch.setattr(hf_to_mcore, "write_streamed", damaging)
    with pytest.raises(UserError, match=r"model.layers.2.mlp.down_proj.weight was not written as it was read"):
        import_specialist(llama, tmp_path / "out")
    assert _tree(tmp_path) == []


@pytest.mark.parametrize(("dtype", "name", "value"), [("fp16", "float16", 1e5), ("bf16", "bfloat16", 3.4e38)])
def test_weights_too_large_for_the_dtype_are_refused(
    copy: Path, tmp_path: Path, dtype: str, name: str, value: float
) -> None:
    _change_weights(copy, lambda tensors: tensors["model.norm.weight"][3].fill_(value))
    message = f"model.norm.weight has weights up to {value:.5g}, which {name} cannot hold"
    with pytest.raises(UserError, match=re.escape(message)):
        import_specialist(copy, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()
    _change_weights(copy, lambda tensors: tensors["model.norm.weight"][3].fill_(float("inf")))
    assert import_specialist(copy, tmp_path / "out", dtype=dtype).dtype == dtype


def test_source_is_named_by_its_content(llama: Path, tmp_path: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    split = shutil.copytree(llama, tmp_path / "split")
    (split / "model.safetensors").unlink()
    files = {
        "model-00001-of-00002.safetensors": list(tensors)[:9],
        "model-00002-of-00002.safetensors": list(tensors)[9:],
    }
    for name, keys in files.items():
        save_file({key: tensors[key] for key in keys}, split / name, metadata={"format": "pt"})
    places = {key: name for name, keys in files.items() for key in keys}
    (split / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    one = import_specialist(llama, tmp_path / "one").content["source"]
    two = import_specialist(split, tmp_path / "two", dtype="bf16").content["source"]
    assert one["content"] == two["content"] and (one["name"], two["name"]) == ("llama", "split")
    _change_weights(shutil.copytree(llama, tmp_path / "other"), lambda t: t["model.norm.weight"][0].add_(1))
    assert import_specialist(tmp_path / "other", tmp_path / "three").content["source"]["content"] != one["content"]


def test_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", tie_word_embeddings=True)
    embedding = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    _change_weights(model, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    import_specialist(model, tmp_path / "out", verify="logits")
    _change_weights(model, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        import_specialist(model, tmp_path / "other")


def test_tied_weights_may_be_transposed_views_of_a_pickle(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(model / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"].T.contiguous().T
    tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    torch.save(tensors, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert import_specialist(model, tmp_path / "out").content["tied_head"] == "lm_head.weight"


def test_not_a_number_is_kept_bit_by_bit_and_never_passes_as_equal_logits(copy: Path, tmp_path: Path) -> None:
    _change_weights(copy, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    import_specialist(copy, tmp_path / "weights", verify="weights")
    with pytest.raises(UserError, match="differ by nan"):
        import_specialist(copy, tmp_path / "logits", verify="logits")


def test_output_is_refused_where_it_would_destroy(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="--overwrite"):
        import_specialist(copy, tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"is not an earlier output .*not overwritten"):
        import_specialist(copy, tmp_path / "out", overwrite=True)
    for inside in (copy, copy / "out", tmp_path, copy / ".." / "model"):
        with pytest.raises(UserError, match="contain one another"):
            import_specialist(copy, inside, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_overwrite(copy: Path, tmp_path: Path) -> None:
    first = import_specialist(copy, tmp_path / "out")
    _change_weights(copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    second = import_specialist(copy, tmp_path / "out", overwrite=True)
    assert content_hash(read_manifest(tmp_path / "out")) == content_hash(second) != content_hash(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_full_disk_is_noticed_before_writing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(UserError, match=r"has 0\.1 MB free, but 3\d\.\d MB are needed; make room"):
        import_specialist(llama, tmp_path / "deep" / "out")
    assert _tree(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "GPT2LMHeadModel is not supported"),
        ({"num_hidden_layers": 5}, r"lacks model.layers.4"),
        ({"vocab_size": 319}, r"model.embed_tokens.weight has shape"),
    ],
)
def test_configuration_that_does_not_fit(copy: Path, tmp_path: Path, change: dict, message: str) -> None:
    _change_config(copy, **change)
    with pytest.raises(UserError, match=message):
        import_specialist(copy, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_carried_files_that_cannot_be_copied_are_noticed_before_the_weights(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(shutil, "copyfile", refuse)
    monkeypatch.setattr(hf_to_mcore, "write_streamed", lambda *_: pytest.fail("the weights were written"))
    with pytest.raises(PermissionError):
        import_specialist(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
