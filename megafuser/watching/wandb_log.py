"""Weights & Biases, where the configuration asks for it: the same numbers as in `metrics.jsonl`.

The numbers are made in `training.metrics`.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megafuser.config.watching import LoggingConfig, WandbConfig
from megafuser.extras import require
from megafuser.watching.tensorboard import LABELS

ID_FILE = "wandb.id"


def check_wandb(settings: LoggingConfig) -> None:
    """Refuses to begin without the package that the configuration asks for.

    Raises:
        UserError: names the extra that brings it.
    """
    if settings.wandb is not None:
        require("wandb", "logging.wandb", otherwise="set it to null")


class WandbLog:
    """A run there for both stages of a run here, gone on with by every start; on rank 0 only.

    Steps that an interrupted run wrote and does again stand there twice: what was sent cannot be taken back.
    """

    def __init__(self, settings: WandbConfig, run_directory: Path, configuration: Mapping[str, Any]) -> None:
        """Begins, or goes on.

        Args:
            settings: project, name, mode.
            run_directory: keeps the run's id, so that the next start goes on with the same.
            configuration: shown beside the curves.
        """
        import wandb

        id_file = run_directory / ID_FILE
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or run_directory.resolve().name,
            mode=settings.mode,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run_directory),
            config=dict(configuration),
        )
        for stage in ("warmup", "joint"):
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line of `metrics.jsonl` as `STAGE/SPLIT/METRIC`."""
        prefix = f"{line['stage']}/{line['split']}/"
        numbers = {
            prefix + key: value for key, value in line.items() if key not in LABELS and isinstance(value, int | float)
        }
        self._run.log({f"{line['stage']}/step": line["step"], **numbers})

    def close(self) -> None:
        """Sends the rest."""
        self._run.finish()
