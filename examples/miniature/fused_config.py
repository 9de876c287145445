"""The configurations of the fused runs: one for each variant and seed, and its twin that reports on test."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.miniature.settings import Settings, part_file
from examples.quickstart.samples import DOMAINS
from examples.shared.files import write_by_rename

TEMPLATES = {"text": "ultralm", "code": "codellama", "math": "alpaca"}
SEQUENCE_LENGTH = 1024


@dataclass(frozen=True)
class Variant:
    """One way to train a fused model.

    Attributes:
        name: of its files.
        balanced: as many samples of each domain in every step.
        warmup_steps: of stage 1; 0 is joint training from the start, from a gate that was never trained.
        gate_hidden_size: the gate's units.
    """

    name: str
    balanced: bool
    warmup_steps: int
    gate_hidden_size: int


def core_variants(settings: Settings) -> list[Variant]:
    """Those of every seed; the first is the method itself."""
    steps, size = settings.warmup_steps, settings.gate_hidden_size
    return [
        Variant("balanced", True, steps, size),
        Variant("joint-only", True, 0, size),
        Variant("unbalanced", False, steps, size),
    ]


def other_variants(settings: Settings) -> list[Variant]:
    """Those of the first seed alone: other lengths of warm-up, other sizes of the gate."""
    steps, size = settings.warmup_steps, settings.gate_hidden_size
    return [
        *(Variant(f"warmup-{other}", True, other, size) for other in settings.warmup_lengths),
        *(Variant(f"gate-{other}", True, steps, other) for other in settings.gate_hidden_sizes),
    ]


def fused_config(settings: Settings, out: Path, seed: int, variant: Variant, part: str) -> dict[str, Any]:
    """A configuration of `megafuser`.

    Args:
        settings: the run's.
        out: its output directory.
        seed: of the specialists and of the fused run.
        variant: what is trained.
        part: what validates: `dev` in training, `test` for the report.
    """
    own = out / f"seed{seed}"
    # A gate that was never trained weighs all specialists alike. One step with a learning rate of 0 makes that
    # checkpoint; joint training starts from it.
    trained = variant.warmup_steps > 0
    common = {"samples_per_domain": settings.samples_per_domain, "row_width": SEQUENCE_LENGTH}
    return {
        "run_dir": str(own / "runs" / variant.name),
        "seed": seed,
        "specialists": [
            {"name": name, "checkpoint": str(own / "checkpoints" / name), "template": TEMPLATES[name]}
            for name in DOMAINS
        ],
        "gate": {"hidden_size": variant.gate_hidden_size},
        "data": {
            "sequence_length": SEQUENCE_LENGTH,
            "balanced": variant.balanced,
            "workers": 1,
            "cache_dir": str(own / "cache"),
            "domains": {
                name: {"train": [str(part_file(out, name, "fusion"))], "valid": [str(part_file(out, name, part))]}
                for name in DOMAINS
            },
        },
        "parallel": {"tensor": 1, "pipeline": 1, "sequence": False},
        "precision": {"dtype": "fp32"},
        "device": "cpu",
        "warmup": {
            **common,
            "steps": variant.warmup_steps or 1,
            "lr": settings.warmup_rate if trained else 0.0,
        },
        "joint": {**common, "steps": settings.joint_steps, "lr": settings.joint_rate},
        "evaluation": {"interval": max(2, settings.joint_steps // 6), "samples_per_domain": 48},
        "checkpoint": {"interval": max(50, settings.joint_steps // 3), "keep": 1, "async": False},
    }


def write_configs(settings: Settings, out: Path) -> None:
    """Writes out/seedN/configs/VARIANT.yaml and VARIANT.test.yaml, where they are not there yet."""
    for seed in settings.seeds:
        variants = core_variants(settings) + (other_variants(settings) if seed == settings.seeds[0] else [])
        for variant in variants:
            for part, ending in (("dev", "yaml"), ("test", "test.yaml")):
                path = config_file(out, seed, variant.name, ending)
                _write(path, fused_config(settings, out, seed, variant, part))


def config_file(out: Path, seed: int, variant: str, ending: str = "yaml") -> Path:
    """Where a configuration is."""
    return out / f"seed{seed}" / "configs" / f"{variant}.{ending}"


def _write(path: Path, values: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(values), sort_keys=False)
    if not path.exists() or path.read_text("utf-8") != text:
        write_by_rename(path, text)
