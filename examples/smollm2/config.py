"""The configurations of the fused run: one to train with, and its twin that reports on test."""

from pathlib import Path
from typing import Any

import yaml

from examples.quickstart.samples import DOMAINS
from examples.shared.files import write_by_rename
from examples.smollm2.settings import TEMPLATE, Settings, part_file

SEQUENCE_LENGTH = 512
# Joint training's rate is that of pretrained weights; the gate is new, and would hardly move.
GATE_RATE = 10.0


def fused_config(settings: Settings, out: Path, part: str) -> dict[str, Any]:
    """A configuration of `megafuser`; `part` is what validates: `dev` in training, `test` for the report."""
    # of joint training
    interval = min(20, max(2, settings.joint_steps // 2))
    step = {"samples_per_domain": settings.samples_per_domain, "row_width": SEQUENCE_LENGTH}
    return {
        "run_dir": str(out / "run"),
        "seed": settings.seed,
        "specialists": [
            {"name": name, "checkpoint": str(out / "checkpoints" / name), "template": TEMPLATE} for name in DOMAINS
        ],
        "gate": {"hidden_size": 512},
        "data": {
            "sequence_length": SEQUENCE_LENGTH,
            "balanced": True,
            "workers": 1,
            "cache_dir": str(out / "cache"),
            "domains": {
                name: {"train": [str(part_file(out, name, "fusion"))], "valid": [str(part_file(out, name, part))]}
                for name in DOMAINS
            },
        },
        "parallel": {"tensor": 1, "pipeline": 1, "sequence": False},
        "precision": {"dtype": settings.dtype},
        "device": "cpu",
        "optimizer": {"gate_lr_multiplier": GATE_RATE},
        "warmup": {**step, "steps": settings.warmup_steps, "lr": settings.warmup_rate},
        "joint": {
            **step,
            "steps": settings.joint_steps,
            "lr": settings.joint_rate,
            "lr_warmup_steps": min(5, settings.joint_steps // 2),
        },
        # dev chooses the state, as it does for the fine-tunes
        "evaluation": {"interval": interval, "samples_per_domain": settings.dev},
        "checkpoint": {"interval": interval, "keep": 1, "keep_best": True, "async": False},
    }


def write_configs(settings: Settings, out: Path) -> None:
    """Writes config.yaml and test.yaml into `out`, where they are not there yet."""
    for part, name in (("dev", "config.yaml"), ("test", "test.yaml")):
        text = yaml.safe_dump(fused_config(settings, out, part), sort_keys=False)
        if not (out / name).exists() or (out / name).read_text("utf-8") != text:
            write_by_rename(out / name, text)
