"""The weight files of a Hugging Face directory, safetensors or PyTorch's .bin: headers at once, tensors as views.

No tensor is read before it is touched, and no pickled code ever runs. What the tensors are for is `families`; writing
safetensors is `conversion.safetensors_writer`.
"""

import json
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megafuser.errors import UserError, first_line

# Source: safetensors' format description; those without a counterpart in PyTorch are left out.
_SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_LFS_POINTER = b"version https://git-lfs"
_LEGACY_PICKLE = b"\x80"
# Weights that no reader here takes, with what they are called.
_FOREIGN = (
    ("*.gguf", "GGUF files"),
    ("consolidated*", "the original authors' own format (consolidated.*)"),
    ("*.h5", "TensorFlow weights"),
    ("*.msgpack", "Flax weights"),
    ("*.pt", "PyTorch pickles of an unknown layout"),
    ("*.pth", "PyTorch pickles of an unknown layout"),
)


class WeightFile(ABC):
    """One open file of weights.

    Attributes:
        path: where it lies.
        shapes: key → shape of every tensor.
        dtypes: key → dtype of every tensor, whether it can be a weight's or not.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and reads what it says of its tensors.

        Raises:
            UserError: the file is damaged, incomplete, or holds something else than tensors.
        """
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise UserError(f"{path} is a Git LFS pointer and not the file itself; fetch it (git lfs pull)")
        self._read_header(start)

    @abstractmethod
    def tensor(self, key: str) -> torch.Tensor:
        """A view into the memory-mapped file, in the dtype it is stored in; nothing is read until it is touched."""

    @abstractmethod
    def _read_header(self, start: bytes) -> None:
        """Fills `shapes` and `dtypes`; `start` is the beginning of the file."""

    def _damaged(self, reason: object) -> UserError:
        return UserError(f"{self.path} is damaged or incomplete ({reason}); download it again")


class SafetensorsFile(WeightFile):
    """A .safetensors file."""

    def tensor(self, key: str) -> torch.Tensor:
        """A view into the memory-mapped file, in the dtype it is stored in; nothing is read until it is touched."""
        tensor: torch.Tensor = self._handle.get_tensor(key)
        return tensor

    def _read_header(self, start: bytes) -> None:
        try:
            self._handle = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from None
        for key in self._handle.keys():  # noqa: SIM118 (no mapping, has no iterator)
            described = self._handle.get_slice(key)
            if (name := described.get_dtype()) not in _SAFETENSORS_DTYPES:
                raise UserError(f"{self.path}: {key} has dtype {name}; convert the original, unquantized weights")
            self.shapes[key] = tuple(described.get_shape())
            self.dtypes[key] = _SAFETENSORS_DTYPES[name]


class PickledFile(WeightFile):
    """A .bin file: a state dict that `torch.save` has written as a zip archive."""

    def tensor(self, key: str) -> torch.Tensor:
        """A view into the memory-mapped file, in the dtype it is stored in; nothing is read until it is touched."""
        return self._tensors[key]

    def _read_header(self, start: bytes) -> None:
        if start.startswith(_LEGACY_PICKLE):
            raise UserError(
                f"{self.path} is in PyTorch's old format, which cannot be memory-mapped; load it with transformers and "
                "save it again with save_pretrained, which writes safetensors"
            )
        self._check_archive()
        self._tensors: dict[str, torch.Tensor] = {}
        for key, value in self._load().items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                raise UserError(
                    f"{self.path}: {key!r} holds a {type(value).__name__} where a state dict has a tensor; save the "
                    "model again with save_pretrained"
                )
            if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise UserError(f"{self.path}: {key} is not a plain tensor; convert the original, unquantized weights")
            self._tensors[key] = value.detach()
            self.shapes[key] = tuple(value.shape)
            self.dtypes[key] = value.dtype

    def _check_archive(self) -> None:
        """Checks what `torch.load` takes on trust when it maps a file: the pickle's bytes, and how records are stored.

        Raises:
            UserError: the directory of the archive is cut off, its pickle is damaged, or a record is compressed.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                records = archive.infolist()
                if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                    raise UserError(
                        f"{self.path} is compressed, so it cannot be memory-mapped; save it with torch.save"
                    )
                for record in records:
                    if PurePath(record.filename).name == "data.pkl":
                        archive.read(record)  # compares its checksum
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError) as error:
            raise self._damaged(error) from None

    def _load(self) -> dict[Any, Any]:
        try:
            values = torch.load(str(self.path), map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"(?:GLOBAL |got <class ')([\w.]+)", str(error))
            raise UserError(
                f"{self.path} holds more than tensors ({named[1] if named else 'objects of unknown types'}), which "
                "could run code when it is read; get the weights as safetensors"
            ) from None
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, AssertionError) as error:
            raise self._damaged(first_line(error)) from None
        if not isinstance(values, dict):
            raise UserError(f"{self.path} holds a {type(values).__name__} and no state dict; get it as safetensors")
        return values


# As transformers looks for them: one file first, then an index of several.
KINDS: tuple[tuple[str, type[WeightFile]], ...] = (
    ("model.safetensors", SafetensorsFile),
    ("pytorch_model.bin", PickledFile),
)


def open_weight_files(directory: Path) -> dict[str, WeightFile]:
    """Opens the weights that transformers would choose: key → the file that holds it.

    Args:
        directory: of a Hugging Face model.

    Raises:
        UserError: there are none of a kind that can be read, one is damaged, or index and files contradict each other.
    """
    for single, kind in KINDS:
        if (directory / single).is_file():
            file = kind(directory / single)
            return dict.fromkeys(file.shapes, file)
        if (index := directory / f"{single}.index.json").is_file():
            return _open_shards(index, kind)
    raise _no_weights(directory)


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        UserError: it is damaged or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; download it again")
    return values


def _open_shards(index: Path, kind: type[WeightFile]) -> dict[str, WeightFile]:
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map; download it again")
    for name in places.values():
        if not isinstance(name, str) or PurePath(name).name != name:
            raise UserError(f"{index} names {name!r}, which is not in this directory; download it again")
    names = sorted(set(places.values()))
    for name in names:
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is missing; download it again")
    files = {name: kind(index.parent / name) for name in names}
    for key, name in places.items():
        if key not in files[name].shapes:
            raise UserError(f"{index} places {key} in {name}, which lacks it; download both again")
    for name, file in files.items():
        for key in file.shapes:
            if key not in places:
                raise UserError(f"{file.path} holds {key}, which {index.name} does not list; download both again")
            if places[key] != name:
                raise UserError(
                    f"{file.path} holds {key}, which {index.name} places in {places[key]}, so it is there "
                    "twice; download both again"
                )
    return {key: files[name] for key, name in places.items()}


def _no_weights(directory: Path) -> UserError:
    wanted = [single for single, _ in KINDS]
    if (directory / "adapter_config.json").is_file():
        return UserError(f"{directory} holds an adapter alone; merge it into its base model and convert that")
    if any(directory.glob("*.safetensors")) or any(directory.glob("*.bin")):
        return UserError(f"{directory} has neither {' nor '.join(wanted)} nor an index of shards; download it again")
    for pattern, name in _FOREIGN:
        if any(directory.glob(pattern)):
            return UserError(
                f"{directory} has {name} only; get the model as safetensors (a name that transformers loads)"
            )
    return UserError(
        f"{directory} has no weights ({', '.join(wanted)}, or an index of shards); download the model again"
    )
