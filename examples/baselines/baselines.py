"""What the baselines need to know of a run, and the configuration under which they are measured.

python examples/baselines/baselines.py describe --config CONFIG --out OUT [key=value ...]
python examples/baselines/baselines.py config --config CONFIG --out OUT [key=value ...]
"""

import argparse
import json
from pathlib import Path

import yaml

from megafuser.config.load import load_config, to_yaml
from megafuser.config.run_directory import RunDirectory
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError

MERGES = ("linear", "ties")


def main() -> None:
    """Writes files into `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("describe", "config"))
    parser.add_argument("--config", required=True, help="the run's configuration")
    parser.add_argument("--out", type=Path, required=True, help="the baselines' output directory")
    options, overrides = parser.parse_known_args()
    try:
        config = load_config(options.config, overrides)
        (describe if options.command == "describe" else write_config)(config, options.out)
    except UserError as error:
        parser.exit(2, f"megafuser: error: {error}\n")


def describe(config: RunConfig, out: Path) -> None:
    """Writes the specialists' names, where each one's checkpoint is, and the run's directory.

    Raises:
        UserError: the run has no warm-up checkpoint.
    """
    run = RunDirectory(Path(config.run_dir))
    if not (run.path / "warmup" / "latest").exists():
        raise UserError(f"{run.path} has no warm-up checkpoint; run `megafuser warmup`, or the quickstart, first")
    (out / "sources").mkdir(parents=True, exist_ok=True)
    for specialist in config.specialists:
        (out / "sources" / specialist.name).write_text(f"{specialist.checkpoint}\n", "utf-8")
    (out / "names.txt").write_text("".join(f"{own.name}\n" for own in config.specialists), "utf-8")
    (out / "run_dir.txt").write_text(f"{run.path}\n", "utf-8")


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
    values["warmup"] |= {"steps": 1, "samples_per_domain": 1}
    path = out / "config.yaml"
    text = yaml.safe_dump(values, sort_keys=False)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
