"""Weight files of both kinds: every tensor as a view that costs nothing, and one line for each bad file or index."""

import json
import os
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from megafuser.conversion.weight_files import PickledFile, SafetensorsFile, open_weight_files
from megafuser.errors import UserError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
KINDS = pytest.mark.parametrize("single", [SAFETENSORS, PICKLED])
TENSORS = {
    "large": torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)),
    "half": torch.arange(6).view(2, 3).to(torch.float16),
    "brain": torch.tensor([1.5, -0.0, float("nan")]).to(torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "buffer": torch.arange(4, dtype=torch.float64),
}


def _save(path: Path, tensors: dict[str, torch.Tensor], like: str | None = None) -> None:
    """In the format of the file that it is named like."""
    if Path(like or path).suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def _save_shards(directory: Path, single: str, places: dict[str, list[str]], index: object) -> None:
    """Shards that hold the keys given, and an index that says what it is told."""
    for name, keys in places.items():
        _save(directory / name, {key: TENSORS[key] for key in keys}, like=single)
    (directory / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@KINDS
def test_one_file(single: str, tmp_path: Path) -> None:
    _save(tmp_path / single, TENSORS)
    files = open_weight_files(tmp_path)
    assert files.keys() == TENSORS.keys()
    for key, original in TENSORS.items():
        file = files[key]
        assert (file.path, file.shapes[key], file.dtypes[key]) == (tmp_path / single, original.shape, original.dtype)
        assert file.tensor(key).dtype == original.dtype
        assert torch.equal(file.tensor(key).nan_to_num(7), original.nan_to_num(7))


@KINDS
def test_shards(single: str, tmp_path: Path) -> None:
    first, second = (single.replace(".", f"-0000{number}-of-00002.") for number in (1, 2))
    places = {first: ["large", "half"], second: ["brain"]}
    _save_shards(tmp_path, single, places, {key: name for name, keys in places.items() for key in keys})
    files = open_weight_files(tmp_path)
    assert {key: file.path.name for key, file in files.items()} == {"large": first, "half": first, "brain": second}
    assert torch.equal(files["large"].tensor("large"), TENSORS["large"])


@KINDS
def test_tensors_are_views_of_the_file(single: str, tmp_path: Path) -> None:
    _save(tmp_path / single, TENSORS)
    tensor = open_weight_files(tmp_path)["large"].tensor("large")
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= tensor.data_ptr() < high:
            assert line.endswith(str(tmp_path / single))
            return
    raise AssertionError("the tensor lies in no mapping")


def test_order_of_preference_is_that_of_transformers(tmp_path: Path) -> None:
    """As `transformers.modeling_utils` looks: each removed one makes way for the next."""
    _save(tmp_path / SAFETENSORS, {"x": torch.ones(1)})
    _save(tmp_path / PICKLED, {"x": torch.ones(3)})
    for single, size in ((SAFETENSORS, 2), (PICKLED, 4)):
        shard = single.replace(".", "-00001-of-00001.")
        _save(tmp_path / shard, {"x": torch.ones(size)})
        (tmp_path / f"{single}.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    for size, used in enumerate((SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLED, f"{PICKLED}.index.json"), 1):
        assert open_weight_files(tmp_path)["x"].shapes["x"] == (size,)
        (tmp_path / used).unlink()
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        open_weight_files(tmp_path)


def test_parameters_shared_and_strided_tensors_of_a_pickle(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    torch.save({"p": torch.nn.Parameter(base), "same": base, "rows": base[1:], "turned": base.T}, tmp_path / PICKLED)
    file = PickledFile(tmp_path / PICKLED)
    assert file.shapes == {"p": (3, 4), "same": (3, 4), "rows": (2, 4), "turned": (4, 3)}
    assert not file.tensor("p").requires_grad
    assert torch.equal(file.tensor("rows"), base[1:]) and torch.equal(file.tensor("turned"), base.T)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def _compress(path: Path) -> None:
    """What re-packing with a zip program does: the names are the same, the records are not."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


class _Command:
    """Unpickled as it should not be, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


DAMAGED = "is damaged or incomplete"


@KINDS
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), DAMAGED),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><title>Not found</title>"), DAMAGED),
        (lambda path: _cut(path, 5), DAMAGED),
        (lambda path: _cut(path, path.stat().st_size // 2), DAMAGED),
        (lambda path: _cut(path, path.stat().st_size - 1), DAMAGED),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    ],
)
def test_bad_file(single: str, damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    _save(tmp_path / single, TENSORS)
    damage(tmp_path / single)
    _assert_refused(tmp_path, f"{re.escape(str(tmp_path / single))} {message}")


@pytest.mark.parametrize("at", [0, 3, 40])
def test_flipped_byte_in_a_safetensors_header(at: int, tmp_path: Path) -> None:
    _save(tmp_path / SAFETENSORS, TENSORS)
    _flip(tmp_path / SAFETENSORS, at)
    _assert_refused(tmp_path, DAMAGED)


def test_flipped_byte_anywhere_in_the_pickle(tmp_path: Path) -> None:
    """`torch.load` alone takes some of these for another model."""
    _save(tmp_path / PICKLED, TENSORS)
    intact = (tmp_path / PICKLED).read_bytes()
    with zipfile.ZipFile(tmp_path / PICKLED) as archive:
        (record,) = (record for record in archive.infolist() if record.filename.endswith("data.pkl"))
    start = intact.index(b"\x80\x02", record.header_offset)
    for at in range(start, start + record.file_size, 23):
        (tmp_path / PICKLED).write_bytes(intact)
        _flip(tmp_path / PICKLED, at)
        _assert_refused(tmp_path, DAMAGED)


def test_flipped_bit_in_the_directory_of_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2), "b": torch.ones(3)}, path)
    content = path.read_bytes()
    for at in range(-98, 0):  # the three records that say where the directory is
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with suppress(UserError):
                PickledFile(path)


def test_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1), "y": _Command(tmp_path / "ran")}, tmp_path / PICKLED)
    _assert_refused(tmp_path, r"holds more than tensors \(\w+\.system\), which could run code.*as safetensors")
    assert not (tmp_path / "ran").exists()


def test_old_format_that_would_run_code_does_not(tmp_path: Path) -> None:
    torch.save({"y": _Command(tmp_path / "ran")}, tmp_path / PICKLED, _use_new_zipfile_serialization=False)
    _assert_refused(tmp_path, "old format, which cannot be memory-mapped; .*save_pretrained")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.nn.Linear(2, 2), r"holds more than tensors \(torch.nn.modules.linear.Linear\)"),
        ({"x": np.ones(3)}, r"holds more than tensors \(numpy"),
        ([torch.ones(3)], "holds a list and no state dict"),
        ({"model": {"x": torch.ones(1)}}, "'model' holds a dict where a state dict has a tensor"),
        ({"x": torch.ones(1), "step": 3}, "'step' holds a int where"),
        ({3: torch.ones(1)}, "3 holds a Tensor where"),
        ({"x": torch.eye(3).to_sparse()}, "x is not a plain tensor"),
        ({"x": torch.empty(3, device="meta")}, "x is not a plain tensor"),
    ],
)
def test_pickle_without_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / PICKLED)
    _assert_refused(tmp_path, message)


def test_compressed_pickle(tmp_path: Path) -> None:
    """`torch.load` would map the compressed bytes and call them weights."""
    _save(tmp_path / PICKLED, TENSORS)
    _compress(tmp_path / PICKLED)
    _assert_refused(tmp_path, "is compressed")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_module(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / PICKLED))
    _assert_refused(tmp_path, str(tmp_path / PICKLED))


@KINDS
@pytest.mark.parametrize(
    ("places", "index", "message"),
    [
        ({"a": ["half"]}, {}, "has no weight_map"),
        ({"a": ["half"]}, ["half"], "has no weight_map"),
        ({"a": ["half"]}, {"half": 3}, "names 3, which is not in this directory"),
        ({"a": ["half"]}, {"half": "../a"}, "names '../a', which is not in this directory"),
        ({"a": ["half"]}, {"half": "/etc/passwd"}, "names '/etc/passwd', which is not in this directory"),
        ({"a": ["half"]}, {"half": "a", "brain": "gone"}, "names gone, which is missing"),
        ({"a": ["half"]}, {"half": "a", "brain": "a"}, "places brain in a, which lacks it"),
        ({"a": ["half"], "b": ["brain"]}, {"half": "b", "brain": "b"}, "places half in b, which lacks it"),
        ({"a": ["half", "brain"]}, {"half": "a"}, "/a holds brain, which .*index.json does not list"),
        (
            {"a": ["half", "brain"], "b": ["brain"]},
            {"half": "a", "brain": "b"},
            "/a holds brain, which .*index.json places in b, so it is there twice",
        ),
    ],
)
def test_bad_index(single: str, places: dict[str, list[str]], index: object, message: str, tmp_path: Path) -> None:
    _save_shards(tmp_path, single, places, index)
    _assert_refused(tmp_path, message)


@KINDS
@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000], ids=["open", "list", "deep"])
def test_index_that_is_no_json_object(single: str, content: str, tmp_path: Path) -> None:
    (tmp_path / f"{single}.index.json").write_text(content)
    _assert_refused(tmp_path, f"{single}.index.json (is not valid JSON|holds no JSON object)")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no weights"),
        (["other.safetensors"], "has neither model.safetensors nor pytorch_model.bin nor an index"),
        (["pytorch_model-00001-of-00002.bin"], "nor an index"),
        (["model-q4.gguf", "README.md"], "has GGUF files only"),
        (["consolidated.00.pth"], "has the original authors' own format"),
        (["tf_model.h5"], "has TensorFlow weights only"),
        (["flax_model.msgpack"], "has Flax weights only"),
        (["weights.pt"], "has PyTorch pickles of an unknown layout only"),
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter alone; merge"),
    ],
)
def test_directory_without_weights(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    _assert_refused(tmp_path, message)


def test_dtype_without_a_name_in_pytorch(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / SAFETENSORS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(UserError, match="x has dtype F8_E8M0"):
        SafetensorsFile(tmp_path / SAFETENSORS)


def _assert_refused(directory: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_weight_files(directory)
    assert "\n" not in str(caught.value)
