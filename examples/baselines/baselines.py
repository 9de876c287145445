"""What the baselines need to know of a run, and the configuration under which they are measured.

python examples/baselines/baselines.py describe --config CONFIG --out OUT [--base BASE] [key=value ...]
python examples/baselines/baselines.py config --config CONFIG --out OUT [key=value ...]
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from examples.shared.kept_settings import keep_values
from megafuser.checkpoint.manifest import checkpoint_identity
from megafuser.config.load import WITHOUT_EFFECT_ON_RESULTS, load_config, to_yaml
from megafuser.config.run_directory import RunDirectory, resolve_checkpoint
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError

MERGES = ("linear", "ties")
MADE = ("names.txt", "specialists", "models", "checkpoints", "run", "report-warmup", "report-joint", "report-baselines")
# Of that, what follows from how many tokens the run went through: the fine-tune, and all that it is measured in.
OF_FINE_TUNE = ("models/finetuned", "checkpoints/finetuned", "run", "report-baselines")


def main() -> None:
    """Writes files into `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("describe", "config"))
    parser.add_argument("--config", required=True, help="the run's configuration")
    parser.add_argument("--out", type=Path, required=True, help="the baselines' output directory")
    parser.add_argument("--base", help="of the merges")
    options, overrides = parser.parse_known_args()
    try:
        config = load_config(options.config, overrides)
        if options.command == "describe":
            describe(config, options.out, options.base)
        else:
            write_config(config, options.out)
    except UserError as error:
        parser.exit(2, f"megafuser: error: {error}\n")


def describe(config: RunConfig, out: Path, base: str | None = None) -> None:
    """Writes the specialists' names, where each one's checkpoint is, and the checkpoint of each stage of the run.

    The output directory belongs to one configuration, one base and these very checkpoints.

    Raises:
        UserError: the run has no warm-up checkpoint, or the output directory was made from something else.
    """
    run = RunDirectory(Path(config.run_dir))
    if not run.latest_file("warmup").exists():
        raise UserError(f"{run.path} has no warm-up checkpoint; run `megafuser warmup`, or the quickstart, first")
    stages = [stage for stage in ("warmup", "joint") if run.latest_file(stage).exists()]
    checkpoints = {stage: resolve_checkpoint(run.stage(stage)) for stage in stages}
    _refuse_unknown(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"config": _what_matters(config), "base": base}
    keep_values(settings | {"warm-up checkpoint": checkpoint_identity(checkpoints["warmup"])}, out / "settings.json")
    _keep_joint(checkpoints.get("joint"), run, out)
    for stage, checkpoint in checkpoints.items():
        (out / "stages").mkdir(exist_ok=True)
        (out / "stages" / stage).write_text(f"{checkpoint}\n", "utf-8")
    (out / "sources").mkdir(exist_ok=True)
    for specialist in config.specialists:
        (out / "sources" / specialist.name).write_text(f"{specialist.checkpoint}\n", "utf-8")
    (out / "names.txt").write_text("".join(f"{own.name}\n" for own in config.specialists), "utf-8")


def _what_matters(config: RunConfig) -> dict[str, Any]:
    """The configuration without what changes where and how things are computed, but not what comes out."""
    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    for key in WITHOUT_EFFECT_ON_RESULTS:
        section, _, name = key.rpartition(".")
        (values[section] if section else values).pop(name, None)
    return values


def _refuse_unknown(out: Path) -> None:
    """Refuses what is there without a word of what it was made from, which may be anything, also another's output."""
    if not (out / "settings.json").exists():
        for name in MADE:
            if (out / name).exists():
                raise UserError(
                    f"{out} has a {name}, but no settings.json that says what it was made from; give another --out"
                )


def _keep_joint(checkpoint: Path | None, run: RunDirectory, out: Path) -> None:
    """The joint stage may come later than the rest: then what was fine-tuned for the warm-up's tokens is removed.

    Raises:
        UserError: the output directory was made from another joint checkpoint, or from one that is gone.
    """
    kept = out / "joint.json"
    if checkpoint is None:
        if kept.exists():
            raise UserError(
                f"{out} was made with a joint checkpoint, and {run.path} has none; remove it or give another --out"
            )
        return
    if not kept.exists():
        found = [out / name for name in OF_FINE_TUNE if (out / name).exists()]
        if found:
            print(f"{run.path} has a joint checkpoint now: fine-tuning anew, for the tokens of both stages", flush=True)
        for path in found:
            shutil.rmtree(path)
    keep_values({"joint checkpoint": checkpoint_identity(checkpoint)}, kept)


def write_config(config: RunConfig, out: Path) -> None:
    """Writes the configuration of a fusion of the baselines.

    A merged model has no template of its own, so it is measured under each of the specialists' templates; the table
    takes the best. All templates are in use, as in the run, so that the same samples fit.
    """
    values = yaml.safe_load(to_yaml(config))
    tuned = json.loads((out / "models" / "finetuned" / "finetuned.json").read_text("utf-8"))
    templates = {own["name"]: own["template"] for own in values["specialists"]}
    merged = [
        {"name": f"{merge}-{name}", "checkpoint": str(out / "checkpoints" / merge), "template": template}
        for merge in MERGES
        for name, template in templates.items()
    ]
    single = {"name": "finetuned", "checkpoint": str(out / "checkpoints" / "finetuned")}
    values["specialists"] = [*merged, single | {"template": templates[tuned["specialist"]]}]
    values["run_dir"] = str(out / "run")
    # one step that hardly trains, of what has none of the run's specialists
    values["warmup"] |= {"steps": 1, "samples_per_domain": 1, "lr_warmup_steps": 0}
    values["joint"] |= {"groups": {}, "frozen": []}
    values["logging"]["wandb"] = values["profile"] = None
    path = out / "config.yaml"
    text = yaml.safe_dump(values, sort_keys=False)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
