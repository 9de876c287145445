"""Merges the specialists' weights into one model by mergekit.

    .venv/bin/python merge.py --method linear|ties|dare --specialists DIR --out DIR [--base DIR]

The specialists must have the same architecture; of differing vocabularies, the rows that all have are merged.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")
DENSITY = 0.5


def main() -> None:
    """Merges, puts the tokenizer and the configuration beside the weights, and renames the whole into place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("linear", "ties", "dare"), required=True)
    parser.add_argument("--specialists", type=Path, required=True, help="directory of Hugging Face directories")
    parser.add_argument("--base", help="the model that all specialists were trained from, for ties and dare")
    parser.add_argument("--seed", type=int, default=0, help="of what dare drops")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.out.exists():
        print(f"{args.out} exists")
        return
    directories = _specialists(args.specialists)
    # the vocabulary that is shared is the smallest one, at least where the others only have tokens behind it
    smallest = min(directories, key=lambda path: _config(path)["vocab_size"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(f".{args.out.name}.tmp-{os.getpid()}")
    recipe = temporary.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(_recipe(args.method, directories, args.base, smallest)), "utf-8")
    subprocess.run(
        [
            *(str(Path(sys.executable).with_name("mergekit-yaml")), str(recipe), str(temporary)),
            *("--random-seed", str(args.seed)),
        ],
        check=True,
    )
    _complete(temporary, smallest)
    recipe.unlink()
    os.sync()  # what has its name is whole, after a power cut too
    temporary.rename(args.out)


def _specialists(directory: Path) -> list[Path]:
    """What is below the directory, but for what an interrupted conversion has left there."""
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _recipe(method: str, directories: list[Path], base: str | None, smallest: Path) -> dict[str, Any]:
    """Equal weights; of each specialist's difference from the base, ties keeps the larger half, dare a random one.

    What is left is joined by agreement of signs in both (DARE-TIES). Rows of the vocabulary are aligned with the
    smallest one's.
    """
    name = "dare_ties" if method == "dare" else method
    common = {"merge_method": name, "tokenizer": {"source": str(smallest)}, "dtype": "float32"}
    if method == "linear":
        models = [{"model": str(path), "parameters": {"weight": 1.0 / len(directories)}} for path in directories]
        return common | {"models": models}
    base = base or str(smallest)
    others = [path for path in directories if str(path) != base]
    parameters = {"weight": 1.0 / len(others), "density": DENSITY}
    models = [{"model": str(path), "parameters": dict(parameters)} for path in others]
    return common | {"base_model": base, "models": models, "parameters": {"normalize": True}}


def _complete(merged: Path, smallest: Path) -> None:
    """The smallest vocabulary's tokenizer, and a configuration that says how many rows there are."""
    for name in TOKENIZER_FILES:
        (merged / name).unlink(missing_ok=True)
        if (smallest / name).exists():
            shutil.copyfile(smallest / name, merged / name)
    config = _config(smallest)
    config["vocab_size"] = _embedding_rows(merged)
    (merged / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _embedding_rows(merged: Path) -> int:
    for file in sorted(merged.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if "model.embed_tokens.weight" in tensors.keys():  # noqa: SIM118 - no mapping
                return int(tensors.get_slice("model.embed_tokens.weight").get_shape()[0])
    raise SystemExit(f"merge: error: {merged} has no embedding; remove it and merge again")


def _config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text("utf-8"))
    return config


if __name__ == "__main__":
    main()
