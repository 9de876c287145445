"""Small fusions to test with: three specialists like the paper's (θ, extra rows, templates), data, configuration.

The specialists share 320 ids and differ in everything that a trainer might silently ignore.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megafuser.conversion.hf_to_mcore import import_specialist
from tests.tiny_models import make_model

SPECIALISTS: dict[str, dict[str, Any]] = {
    "text": {"template": "ultralm", "extra_tokens": 0, "rope_theta": 1e4},
    "code": {"template": "codellama", "extra_tokens": 16, "rope_theta": 1e6, "num_hidden_layers": 2},
    "math": {"template": "alpaca", "extra_tokens": 1, "rope_theta": 1e4, "num_key_value_heads": 4},
}
# two of other families, which have QK norms, all biases there are, and scaled RoPE
OTHER_FAMILIES: dict[str, dict[str, Any]] = {
    "text": {
        "template": "ultralm",
        "family": "qwen3",
        "head_dim": 16,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    },
    "code": {
        "template": "codellama",
        "family": "llama",
        "extra_tokens": 16,
        "num_hidden_layers": 2,
        "attention_bias": True,
        "mlp_bias": True,
    },
}
SUBJECTS = ("fox", "dog", "sum", "range", "seven", "print", "nine", "lazy", "ten", "return")


def write_jsonl(path: Path, samples: list[dict[str, Any]]) -> str:
    """Writes samples and gives the path as the configuration wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return str(path)


def samples_of(domain: str, count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Short samples of different lengths; no two are equal."""
    return [
        {
            "instruction": f"{domain} {SUBJECTS[i % 10]} {i}" + " and the quick brown" * (i % 3),
            "response": f"The {SUBJECTS[(i * 7) % 10]} is {i}." + " return a + b" * (i % 4),
        }
        for i in range(offset, offset + count)
    ]


def make_hf_specialists(
    root: Path, specialists: Mapping[str, dict[str, Any]] = SPECIALISTS, **overrides: Any
) -> dict[str, Path]:
    """Hugging Face directories of the specialists, by name."""
    directories = {}
    for seed, (name, settings) in enumerate(specialists.items()):
        model = {"family": "llama"} | {key: value for key, value in settings.items() if key != "template"} | overrides
        directories[name] = make_model(root / "hf" / name, seed=seed, **model)
    return directories


def make_case(
    root: Path,
    *,
    train: int = 12,
    valid: int = 4,
    specialists: Mapping[str, dict[str, Any]] = SPECIALISTS,
    **overrides: Any,
) -> dict[str, Any]:
    """Makes specialists, their converted checkpoints and data under `root`.

    Args:
        root: an empty directory.
        train: training samples of each domain.
        valid: validation samples of each domain.
        specialists: by name; each has the domain of its name.
        overrides: of every specialist's Hugging Face configuration.

    Returns:
        A configuration as YAML would give it, in float32 with rows of 128.
    """
    hf = make_hf_specialists(root, specialists, **overrides)
    for name, directory in hf.items():
        import_specialist(directory, root / "mcore" / name, verify="none")
    domains = {
        name: {
            "train": [write_jsonl(root / "data" / f"{name}.train.jsonl", samples_of(name, train))],
            "valid": [write_jsonl(root / "data" / f"{name}.valid.jsonl", samples_of(name, valid, offset=1000))],
        }
        for name in specialists
    }
    stage = {"steps": 4, "samples_per_domain": 4, "lr": 1e-2}
    return {
        "run_dir": str(root / "run"),
        "specialists": [
            {"name": name, "checkpoint": str(root / "mcore" / name), "template": settings["template"]}
            for name, settings in specialists.items()
        ],
        "gate": {"hidden_size": 16},
        "data": {"sequence_length": 384, "domains": domains},
        "precision": {"dtype": "fp32"},
        "warmup": dict(stage),
        "joint": dict(stage),
        "evaluation": {"interval": 2, "samples_per_domain": 4},
        "checkpoint": {"interval": 2, "keep": 3},
    }


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """Writes a configuration as YAML."""
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path
