"""Reads a Hugging Face model directory lazily: headers at once, tensors one by one from memory-mapped safetensors."""

import json
import shutil
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megafuser.errors import UserError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Any one of these groups makes a tokenizer.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


class HuggingFaceCheckpoint:
    """A Hugging Face directory with a configuration, safetensors weights and a tokenizer.

    Attributes:
        directory: where it lies.
        config: the parsed `config.json`.
        shapes: key → shape of every tensor.
        dtypes: key → dtype of every tensor.
        weight_files: the files that hold the tensors.
    """

    def __init__(self, directory: str | Path) -> None:
        """Reads the configuration and the headers of the weight files.

        Raises:
            UserError: the directory is none, or a part is missing, damaged, or of a kind that is not supported.
        """
        self.directory = Path(directory)
        self.config = _read_config(self.directory)
        _check_tokenizer(self.directory)
        file_of_key = _locate_tensors(self.directory)
        self.weight_files = sorted({self.directory / name for name in file_of_key.values()})
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._handles: dict[str, Any] = {}
        for path in self.weight_files:
            self._read_header(path, {key for key, name in file_of_key.items() if name == path.name})

    def tensor(self, key: str) -> torch.Tensor:
        """Reads one tensor, on the CPU, in the dtype it is stored in.

        Args:
            key: one of `shapes`.
        """
        return self._handles[key].get_tensor(key)

    def nbytes(self, key: str) -> int:
        """Bytes of one tensor as stored."""
        return torch.Size(self.shapes[key]).numel() * self.dtypes[key].itemsize

    def copy_carried_files(self, target: Path) -> None:
        """Copies configuration and tokenizer files verbatim into `target`, which exists."""
        for path in self.carried_files():
            shutil.copyfile(path, target / path.name)

    def carried_files(self) -> list[Path]:
        """Configuration, generation configuration and tokenizer files that are there."""
        return [self.directory / name for name in _CARRIED if (self.directory / name).is_file()]

    def _read_header(self, path: Path, keys: set[str]) -> None:
        try:
            handle = safe_open(path, framework="pt")
            present = set(handle.keys())
            if absent := sorted(keys - present):
                raise UserError(f"{self.directory / _INDEX} places {absent[0]} in {path.name}, which lacks it")
            for key in sorted(keys or present):
                described = handle.get_slice(key)
                if described.get_dtype() not in DTYPES:
                    raise UserError(
                        f"{path}: {key} has dtype {described.get_dtype()}; supported: {', '.join(DTYPES)}. "
                        "Convert the original, unquantized weights"
                    )
                self.shapes[key] = tuple(described.get_shape())
                self.dtypes[key] = DTYPES[described.get_dtype()]
                self._handles[key] = handle
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or incomplete ({error}); download it again") from None


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; give the directory of a Hugging Face model")
    path = directory / "config.json"
    if not path.is_file():
        if (directory / "adapter_config.json").is_file():
            raise UserError(f"{directory} holds an adapter alone; merge it into its base model and convert that")
        raise UserError(f"{directory} has no config.json; give the directory of a Hugging Face model")
    config = _read_json(path)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise UserError(f"{directory} is quantized (quant_method {method}); convert the original, unquantized weights")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; download it again")
    return values


def _check_tokenizer(directory: Path) -> None:
    if not any(all((directory / name).is_file() for name in names) for names in _TOKENIZERS):
        choices = ", ".join(" with ".join(names) for names in _TOKENIZERS)
        raise UserError(f"{directory} has no tokenizer (one of: {choices}); copy the model's tokenizer files there")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            _read_json(directory / name)


def _locate_tensors(directory: Path) -> dict[str, str]:
    """Key → file name, as transformers would choose: a single file first, then the index."""
    if (directory / _SINGLE).is_file():
        return dict.fromkeys(_keys_of(directory / _SINGLE), _SINGLE)
    if (directory / _INDEX).is_file():
        return _read_index(directory)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
        raise UserError(
            f"{directory} has its weights as PyTorch pickles only, which is not supported; load it with transformers "
            "and save it again with save_pretrained, which writes safetensors"
        )
    if any(directory.glob("*.safetensors")):
        raise UserError(f"{directory} has safetensors files but neither {_SINGLE} nor {_INDEX}; download it again")
    raise UserError(f"{directory} has no weights ({_SINGLE} or {_INDEX}); download the model again")


def _keys_of(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as handle:
            return list(handle.keys())
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or incomplete ({error}); download it again") from None


def _read_index(directory: Path) -> dict[str, str]:
    path = directory / _INDEX
    places = _read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} has no weight_map; download it again")
    for name in sorted(set(map(str, places.values()))):
        if PurePath(name).name != name:
            raise UserError(f"{path} names {name!r}, which is no file of this directory; download it again")
        if not (directory / name).is_file():
            raise UserError(f"{path} names {name}, which is missing; download it again")
    return {key: str(name) for key, name in places.items()}
