"""What a run's `metrics.jsonl` tells about the training that led to a checkpoint.

That file is written by `watching.metrics_file`; drawing the curves is `report.plots`.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curves:
    """The lines of a run's stages.

    Attributes:
        train: training lines by stage, in the order of their steps.
        valid: validation lines by stage, likewise.
    """

    train: dict[str, list[dict[str, Any]]]
    valid: dict[str, list[dict[str, Any]]]

    @property
    def stages(self) -> list[str]:
        """The stages that have lines, in the order of training."""
        return [stage for stage in ("warmup", "joint") if stage in self.train]


def read_curves(path: Path) -> Curves | None:
    """Reads `metrics.jsonl`; None where there is none, as beside a checkpoint that was copied alone.

    The report does not depend on it: a file that is damaged or cannot be read costs the curves, and a warning.
    """
    if not path.is_file():
        return None
    try:
        # What follows the last line break is a line that is just being written.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError as error:
        logger.warning("%s cannot be read (%s); the report has no training curves", path, error.strerror)
        return None
    splits: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "valid": {}}
    try:
        for line in lines:
            values = json.loads(line)
            splits[values["split"]].setdefault(values["stage"], []).append(values)
        for stages in splits.values():
            for own in stages.values():
                own.sort(key=lambda values: values["step"])
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged; the report has no training curves", path)
        return None
    return Curves(**splits) if splits["train"] else None
