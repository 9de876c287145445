"""One seed's core again with specialists that train for longer: would fusing still win if they had been given more?

The limit of `settings.py` ends some trainings from scratch before their dev loss is flat. Here the first seed's
specialists may take three times as many tokens; they are fused as ever, and trained further for comparison.

python -m examples.miniature.longer [--out DIR] [--jobs N] [--into FILE]
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.miniature.checks import agreement, checks_text, problem
from examples.miniature.claims import claims
from examples.miniature.jobs import Jobs
from examples.miniature.measures import Seed
from examples.miniature.run import HERE, begin, environment, jobs_at_a_time
from examples.miniature.settings import FULL
from examples.quickstart.samples import DOMAINS
from examples.shared.files import write_by_rename
from examples.shared.marks import replace_marked
from examples.shared.measures import Row
from examples.shared.scheduler import Job, Scheduler
from examples.shared.tables import format_claims, format_rows
from megafuser.errors import UserError

NAME = "miniature-longer"
SEED = FULL.seeds[0]
SETTINGS = replace(FULL, seeds=(SEED,), flat_most_tokens=3 * FULL.flat_most_tokens)


def main() -> None:
    """Runs the jobs, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "out" / "longer", metavar="DIR", help="output directory")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs at a time, one thread each (default: the cores)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="Markdown file whose marked part the tables replace")
    args = parser.parse_args()
    workers = jobs_at_a_time(args.jobs, parser)
    out = args.out.resolve()
    try:
        begin(SETTINGS, out, args.into, NAME)
    except (UserError, OSError) as error:
        parser.exit(2, f"megafuser: error: {error}\n")
    # no merges here: no Python for them
    jobs = Jobs(SETTINGS, out, HERE / "out" / "downloads", merging=Path())
    Scheduler(out, workers, environment(), NAME).run(needed(jobs.all((SEED,))))
    seed = Seed(out, SEED)
    checked = agreement([seed], [])
    write_by_rename(out / "table.md", "\n".join(tables(seed, checked)))
    print((out / "table.md").read_text("utf-8"))
    if reason := problem(checked):
        sys.exit(f"{NAME}: error: {reason}")
    if args.into:
        replace_marked(args.into, out, NAME)


def needed(jobs: Iterable[Job]) -> list[Job]:
    """Of a run's jobs those of the tables below, and all that they wait for."""
    by_name = {job.name: job for job in jobs}
    wanted = [f"seed{SEED}-report-balanced-{stage}" for stage in ("warmup", "joint")]
    wanted += [f"seed{SEED}-evaluate-{what}-{name}" for what in ("specialist", "trained-on") for name in DOMAINS]
    found: dict[str, Job] = {}
    while wanted:
        name = wanted.pop()
        found[name] = by_name[name]
        wanted += [other for other in by_name[name].waits_for if other not in found]
    return [job for name, job in by_name.items() if name in found]


def tables(seed: Seed, checked: dict[str, Any]) -> list[str]:
    """What came out, as Markdown, with the result of `agreement`."""
    measures = {f"specialist-{name}": (f"{name} specialist alone", seed.specialist(name)) for name in DOMAINS}
    measures |= {
        "uniform": ("uniform mixture", seed.fused("balanced", "warmup", "uniform")),
        "warmup": ("fused after warm-up", seed.fused("balanced", "warmup")),
        "fused": ("fused after joint", seed.fused("balanced", "joint")),
    }
    for name in DOMAINS:
        key = f"trained-on-{name}"
        measures[key] = (f"{name} specialist, trained further", seed.single(key, name))
    rows = {key: Row(title, {SEED: measure}) for key, (title, measure) in measures.items()}
    found = claims({key: row.seeds for key, row in rows.items()})
    return [*format_rows(rows.values()), "", *format_claims(found), "", *checks_text(checked), ""]


if __name__ == "__main__":
    main()
