"""The whole experiment: makes all models, measures them and writes the tables. Run it again after any interruption.

python -m examples.miniature.run [--fast] [--only-seed N] [--out DIR] [--jobs N] [--into FILE]
"""

import argparse
import os
from pathlib import Path

from examples.miniature.fused_config import write_configs
from examples.miniature.jobs import Jobs
from examples.miniature.settings import FAST, FULL, Settings, write_settings
from examples.shared.marks import check_marks, replace_marked
from examples.shared.scheduler import Scheduler
from megafuser.errors import UserError

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NAME = "miniature"


def main() -> None:
    """Checks the options, writes settings and configurations, runs the jobs, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="everything at a tiny size, to see that it works")
    parser.add_argument("--only-seed", type=int, metavar="N", help="only the jobs of this seed, and its tables")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output directory (default: out/full, or out/fast)")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs at a time, one thread each (default: the cores)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="Markdown file whose marked part the tables replace")
    args = parser.parse_args()
    settings = FAST if args.fast else FULL
    if args.only_seed is not None and args.only_seed not in settings.seeds:
        parser.error(f"--only-seed must be one of {', '.join(map(str, settings.seeds))}, not {args.only_seed}")
    workers = jobs_at_a_time(args.jobs, parser)
    out = (args.out or HERE / "out" / ("fast" if args.fast else "full")).resolve()
    merging = HERE.parent / "baselines" / ".venv" / "bin" / "python"
    try:
        begin(settings, out, args.into, NAME)
        if not merging.exists():
            raise UserError(f"{merging}, which merges models, is missing; start with bash examples/miniature/run.sh")
    except (UserError, OSError) as error:
        parser.exit(2, f"megafuser: error: {error}\n")
    jobs = Jobs(settings, out, HERE / "out" / "downloads", merging)
    seeds = settings.seeds if args.only_seed is None else (args.only_seed,)
    Scheduler(out, workers, environment(), NAME).run(jobs.all(seeds))
    print((out / "table.md").read_text("utf-8"))
    if args.into:
        replace_marked(args.into, out, NAME)


def jobs_at_a_time(jobs: int | None, parser: argparse.ArgumentParser) -> int:
    """What `--jobs` says, or one for each core; the parser refuses what is no number of jobs."""
    if jobs is not None and jobs < 1:
        parser.error(f"--jobs must be at least 1, not {jobs}")
    return jobs or len(os.sched_getaffinity(0))


def begin(settings: Settings, out: Path, into: Path | None, name: str) -> None:
    """Makes the output directory with its settings and configurations, or finds it made with the same.

    Raises:
        UserError: it was made with other settings, or the document that the tables go into has no place for them.
    """
    if into:
        check_marks(into, name)
    out.mkdir(parents=True, exist_ok=True)
    write_settings(settings, out / "settings.json")
    write_configs(settings, out)


def environment() -> dict[str, str]:
    """Of every job: one thread, and the repository on the path."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(paths),
    }


if __name__ == "__main__":
    main()
