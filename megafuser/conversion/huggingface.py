"""Reads a Hugging Face model directory lazily: headers at once, tensors as views into memory-mapped files.

The formats of the files are in `conversion.weight_files`; what the tensors are for is `families`.
"""

import re
from pathlib import Path
from typing import Any

import torch

from megafuser.conversion.carried_files import TOKENIZERS, carried_files, copy_carried_files, has_tokenizer
from megafuser.conversion.weight_files import WeightFile, open_weight_files, read_json_object
from megafuser.errors import UserError
from megafuser.families.family import BUFFERS

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What the names of quantized weights end with; other names are caught by their dtype.
_QUANTIZED = re.compile(
    r"\.(?:(?P<GPTQ_or_AWQ>qweight|qzeros|g_idx)"
    r"|(?P<bitsandbytes>SCB|weight_format|(?:weight\.)?(?:nested_)?(?:absmax|quant_map)|weight\.quant_state\..+)"
    r"|(?P<FP8_or_compressed>weight_scale(?:_inv|_2)?|weight_packed|input_scale))$"
)


class HuggingFaceCheckpoint:
    """A Hugging Face directory with a configuration, weights and a tokenizer.

    Attributes:
        directory: where it lies.
        config: the parsed `config.json`.
        shapes: key → shape of every tensor.
        dtypes: key → dtype of every tensor: one of `WEIGHT_DTYPES`, but for `BUFFERS`, which hold no weights.
    """

    def __init__(self, directory: str | Path) -> None:
        """Reads the configuration and the headers of the weight files.

        Raises:
            UserError: the directory is none, or a part is missing, damaged, or of a kind that is not supported.
        """
        self.directory = Path(directory)
        try:
            self.config = read_description(self.directory)
            self._files = open_weight_files(self.directory)
        except PermissionError as error:
            raise UserError(f"{error.filename or self.directory} may not be read; check its permissions") from None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for key, file in self._files.items():
            _check_kind(file, key)
            self.shapes[key] = file.shapes[key]
            self.dtypes[key] = file.dtypes[key]

    def tensor(self, key: str) -> torch.Tensor:
        """A view into a memory-mapped file, in the dtype it is stored in; nothing is read until it is touched.

        Args:
            key: one of `shapes`.
        """
        return self._files[key].tensor(key)

    def copy_carried_files(self, target: Path) -> None:
        """Copies configuration, tokenizer and licence files verbatim into `target`, which exists."""
        copy_carried_files(self.directory, target)

    def carried_files(self) -> list[Path]:
        """Configuration, generation configuration, tokenizer and licence files that are there."""
        return carried_files(self.directory)


def read_description(directory: Path) -> dict[str, Any]:
    """Reads what tells a model apart from its weights: `config.json`, and whether there is a tokenizer.

    Raises:
        UserError: the directory is none, a part is missing or damaged, or the model is quantized.
    """
    config = _read_config(directory)
    _check_tokenizer(directory)
    return config


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give the directory of a Hugging Face model")
    path = directory / "config.json"
    if not path.is_file():
        if (directory / "adapter_config.json").is_file():
            raise UserError(f"{directory} holds an adapter alone; merge it into its base model and convert that")
        if any(directory.glob("*.gguf")):
            raise UserError(f"{directory} has GGUF files only; get the model as safetensors, with its config.json")
        raise UserError(f"{directory} has no config.json; give the directory of a Hugging Face model")
    config = read_json_object(path)
    if quantization := config.get("quantization_config") or config.get("compression_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise UserError(f"{directory} is quantized (quant_method {method}); convert the original, unquantized weights")
    if (name := config.get("transformers_weights")) is not None:
        raise UserError(
            f"{path}: transformers_weights {name!r}, weights of a name of their own, is not supported; name the file "
            "model.safetensors and remove the entry"
        )
    return config


def _check_tokenizer(directory: Path) -> None:
    if not has_tokenizer(directory):
        choices = ", ".join(" with ".join(names) for names in TOKENIZERS)
        raise UserError(f"{directory} has no tokenizer (one of: {choices}); copy the model's tokenizer files there")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            read_json_object(directory / name)


def _check_kind(file: WeightFile, key: str) -> None:
    """Refuses what quantization leaves in place of a weight."""
    if found := _QUANTIZED.search(key):
        method = str(found.lastgroup).replace("_", " ")
        raise UserError(f"{file.path}: {key} is of {method} quantization; convert the original, unquantized weights")
    if file.dtypes[key] not in WEIGHT_DTYPES and not _is_buffer(key):
        supported = ", ".join(map(_dtype_name, WEIGHT_DTYPES))
        raise UserError(
            f"{file.path}: {key} has dtype {_dtype_name(file.dtypes[key])}; supported: {supported}; convert the "
            "original, unquantized weights"
        )


def _is_buffer(key: str) -> bool:
    """Whether it holds no weights; the plan then checks that there is such a layer."""
    return re.sub(r"\.\d+\.", ".{layer}.", key) in BUFFERS


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
