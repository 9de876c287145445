"""Compares the specialists' losses by plain transformers code with those of `megafuser report`, before joint training.

    python -m examples.smollm2.checks --out OUT

Writes checks.json; fails where the two implementations differ.
"""

import argparse
import json
from pathlib import Path

from examples.quickstart.samples import DOMAINS
from examples.shared.files import read_json, write_by_rename
from examples.shared.measures import mean_losses

# Of a cross-entropy in nats, on the same weights and samples, both in float32.
BOUND = 1e-4


def main() -> None:
    """Writes `--out`/checks.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    args = parser.parse_args()
    found = differences(args.out)
    # what is not a number is not within the bound either
    apart = {name: gap for name, gap in found.items() if not gap <= BOUND}
    if apart:
        raise SystemExit(
            f"smollm2_checks: error: two implementations differ by more than {BOUND} nats: {apart}; trust no number of "
            "this run, and report it"
        )
    write_by_rename(args.out / "checks.json", json.dumps(found, indent=2) + "\n")


def differences(out: Path) -> dict[str, float]:
    """By specialist and domain: how far plain transformers code is from `megafuser report`, in nats."""
    report = read_json(out / "report-warmup" / "report.json")["domains"]
    found = {}
    for name in DOMAINS:
        plain = mean_losses(read_json(out / "losses" / f"{name}.json"))
        for domain in DOMAINS:
            ours = report[domain]["cross_entropy"]["specialists"][name]
            found[f"{name} specialist on {domain}"] = abs(plain[domain] - ours)
    return found


if __name__ == "__main__":
    main()
