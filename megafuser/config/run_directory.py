"""The names of a run's files, and how a `--checkpoint` argument finds a checkpoint among them.

Nothing is written here; what is in a checkpoint is `training.checkpoint_contents`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megafuser.config.load import differences, load_config
from megafuser.config.schema import STAGES, RunConfig
from megafuser.errors import UserError, explained_paths

# in a checkpoint's directory; HUGGINGFACE in a converted specialist's only
MANIFEST = "manifest.json"
WEIGHTS = "weights"
CONFIG = "config.yaml"
HUGGINGFACE = "huggingface"

# overrides that ask for what has no FP8, see `RunConfig` and `PrecisionConfig`
_WITHOUT_FP8 = ("device=cpu", "backend=torch", "precision.dtype=fp32")

_STEP_NAME = re.compile(r"step_(\d{6,})")


def step_name(step: int) -> str:
    """Name of a step's checkpoint directory."""
    return f"step_{step:06d}"


def step_number(name: str) -> int | None:
    """The step of a checkpoint directory's name; None for any other name, a damaged checkpoint's included."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class RunDirectory:
    """What lies where below a run's directory.

    Attributes:
        path: the run's directory; it need not exist.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The configuration as resolved."""
        return self.path / CONFIG

    @property
    def metrics_file(self) -> Path:
        """A JSON line per step."""
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        """A JSON line for each start, warning and end."""
        return self.path / "events.jsonl"

    @property
    def lock_file(self) -> Path:
        """Locked by the process that trains in it; it stays, since a lock on a removed file keeps nobody out."""
        return self.path / "run.lock"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        """Tokenized samples, where `data.cache_dir` names no other directory."""
        return self.path / "data"

    @property
    def trial(self) -> Path:
        """What the last trial of a stage left; scratch."""
        return self.path / "trial"

    def stage(self, stage: str) -> Path:
        """Directory of a stage's checkpoints."""
        return self.path / stage

    def step_directory(self, stage: str, step: int) -> Path:
        """A step's checkpoint."""
        return self.stage(stage) / step_name(step)

    def latest_file(self, stage: str) -> Path:
        """Text file with the name of the stage's last complete checkpoint."""
        return self.stage(stage) / "latest"

    def best_file(self, stage: str) -> Path:
        """Text file with the name of the stage's checkpoint of the lowest validation loss, if that is kept."""
        return self.stage(stage) / "best"

    def latest(self, stage: str) -> Path | None:
        """The stage's last complete checkpoint by its `latest` file; None where there is none."""
        return _named(self.latest_file(stage))

    def best(self, stage: str) -> Path | None:
        """The stage's checkpoint of the lowest validation loss by its `best` file; None where there is none."""
        return _named(self.best_file(stage))


@explained_paths()
def finished_checkpoint(config: RunConfig, stage: str) -> Path | None:
    """The final checkpoint of a stage that this very configuration has already finished, else None.

    It only looks whether the checkpoint is there: its hashes are checked where it is loaded. The run's configuration
    must be the same, and the checkpoint's own where it has one: a later stage rewrites the run's. Where one cannot be
    read, the answer is None: the stage itself looks closely, and passes a damaged checkpoint over.
    """
    run = RunDirectory(Path(config.run_dir))
    latest = run.latest(stage)
    if latest is None or latest.name != step_name(config.stage(stage).steps) or not run.config_file.is_file():
        return None
    recorded = [path for path in (run.config_file, latest / run.config_file.name) if path.is_file()]
    try:
        # A run directory may have been moved since.
        same = all(not differences(replace(load_config(path), run_dir=config.run_dir), config) for path in recorded)
    except UserError:
        return None
    return latest if same else None


@explained_paths()
def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a `--checkpoint` argument means.

    Args:
        path: a step's directory, a stage's directory (its latest checkpoint), or a run's directory (the latest of its
            last stage that has one), or a stage's file `latest` or `best`.

    Raises:
        UserError: there is no checkpoint, or none that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: no such directory; give a run's, a stage's or a step's")
    if (path / MANIFEST).is_file():
        return path
    if path.name in ("latest", "best") and (named := _named(path)) is not None:
        return named
    if step_number(path.resolve().name) is not None:
        raise UserError(f"no checkpoint at {path}: it has no {MANIFEST}; use another step of {path.resolve().parent}")
    run = RunDirectory(path)
    for directory in (path, *(run.stage(stage) for stage in reversed(STAGES))):
        if (latest := _named(directory / "latest")) is not None:
            return latest
        if (directory / "latest").is_file():
            name = (directory / "latest").read_text("utf-8", errors="replace").strip()
            raise UserError(
                f"{directory / 'latest'} names {name!r}, which is not a checkpoint; give a step's directory"
            )
    raise UserError(
        f"no checkpoint at {path}: neither a step's directory, nor a stage's or a run's with a latest one; give one "
        "of them"
    )


def checkpoint_config(directory: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run's checkpoint brings along, for what reads it without training.

    Args:
        directory: a step's.
        overrides: `dotted.key=value`, as in `load_config`.

    Raises:
        UserError: it has none, or an override is wrong.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing; use a checkpoint that a stage has written")
    return reading_config_file(path, overrides)


def reading_config_file(path: str | Path, overrides: Sequence[str]) -> RunConfig:
    """A run's configuration for what reads its checkpoints without training.

    Weights are stored without FP8, so that what was trained with it can be read where there is none: an override that
    asks for such a device, backend or dtype asks for no FP8 too.

    Args:
        path: of the file.
        overrides: as in `load_config`.

    Raises:
        UserError: as `load_config` does.
    """
    if any(override.replace(" ", "") in _WITHOUT_FP8 for override in overrides):
        overrides = ("precision.fp8=null", "precision.fp8_first_last_bf16=false", *overrides)
    return load_config(path, overrides)


def report_config(directory: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run's checkpoint brings along, for what reads the run's data.

    A run directory may have been moved since: caches of the data, which lie in it, are those beside the checkpoint.

    Args:
        directory: a step's.
        overrides: as in `checkpoint_config`.

    Raises:
        UserError: as `checkpoint_config` does.
    """
    config = checkpoint_config(directory, overrides)
    stage = directory.resolve().parent
    if stage.name not in STAGES or any(override.startswith("run_dir=") for override in overrides):
        return config
    return replace(config, run_dir=str(stage.parent))


def _named(file: Path) -> Path | None:
    """The checkpoint that a stage's text file names; None where there is no such file or checkpoint."""
    try:
        name = file.read_text("utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    directory = file.parent / name
    return directory if step_number(name) is not None and (directory / MANIFEST).is_file() else None
