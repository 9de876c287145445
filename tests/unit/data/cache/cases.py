"""Configurations over small files, for the tests of caches."""

import json
from pathlib import Path
from typing import Any

from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig

TEMPLATES = {"text": "ultralm", "code": "codellama"}
ROWS = {"text": 320, "code": 336}
POSITIONS = {"text": 512, "code": 512}


def write_samples(path: Path, samples: list[dict[str, Any]]) -> str:
    """A JSONL file's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), "utf-8")
    return str(path)


def numbered(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Samples whose texts and lengths differ."""
    return [
        {"instruction": f"count to {i}", "response": "seven " * (i % 5 + 1) + str(i)}
        for i in range(first, first + count)
    ]


def configuration(root: Path, domains: dict[str, DomainConfig], **data: Any) -> RunConfig:
    """Of a run in `root`; data settings by name."""
    settings: dict[str, Any] = {"sequence_length": 512} | data
    return RunConfig(
        run_dir=str(root / "run"),
        specialists=tuple(SpecialistConfig(name, "nowhere", template) for name, template in TEMPLATES.items()),
        data=DataConfig(domains=domains, **settings),
    )
