"""The whole example: makes all models, measures them and writes the tables. Run it again after any interruption.

python -m examples.smollm2.run [--fast] [--no-trained-on] [--no-harness] [--fine-tuned] [--out DIR] [--into FILE]
"""

import argparse
import os
from pathlib import Path

from examples.shared.kept_settings import keep_values
from examples.shared.marks import check_marks, replace_marked
from examples.shared.scheduler import Scheduler
from examples.smollm2.config import write_configs
from examples.smollm2.jobs import Jobs
from examples.smollm2.settings import FAST, FULL, Scope, as_json
from megafuser.errors import UserError

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NAME = "smollm2"
# A stage that is stopped ends its step and saves a checkpoint of 6.5 GB first.
GRACE_SECONDS = 180.0


def main() -> None:
    """Checks the options, writes settings and configurations, runs the jobs, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a cut model and few samples, to see that it works")
    Scope.add_to(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="output directory (default: out/full, or out/fast)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="Markdown file whose marked part the tables replace")
    args = parser.parse_args()
    settings = FAST if args.fast else FULL
    out = (args.out or HERE / "out" / ("fast" if args.fast else "full")).resolve()
    try:
        if args.into:
            check_marks(args.into, NAME)
        out.mkdir(parents=True, exist_ok=True)
        keep_values(as_json(settings), out / "settings.json")
    except (UserError, OSError) as error:
        parser.exit(2, f"megafuser: error: {error}\n")
    write_configs(settings, out)
    jobs = Jobs(settings, out, HERE / "out" / "downloads", Scope.of(args))
    Scheduler(out, 1, environment(out), NAME, GRACE_SECONDS).run(jobs.all())
    print((out / "table.md").read_text("utf-8"))
    if args.into:
        replace_marked(args.into, out, NAME)


def environment(out: Path) -> dict[str, str]:
    """Of every job: all cores, the repository on the path, and where the tasks find the test samples."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)))),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(paths),
        "SMOLLM2_DATA": str(out / "data"),
    }


if __name__ == "__main__":
    main()
