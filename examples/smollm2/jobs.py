"""What a run consists of: every job with its command, its output and the jobs that it needs."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from examples.quickstart.samples import DOMAINS
from examples.shared.scheduler import Job
from examples.smollm2.settings import TASKS, Scope, Settings

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TUNED = ("code", "math")
# HumanEval's longest prompts, and the answers to them, are longer than the run's samples; the specialists' context is.
HARNESS_POSITIONS = 1024
# Minutes of each job of the whole run on two quiet cores, see README.md.
MINUTES = {
    "source": 0.5,
    "data": 0.5,
    "tune": 5.5,
    "trained": 5.3,
    "fine": 17.5,
    "convert": 0.4,
    "warmup": 6.5,
    "joint": 37.0,
    "report": 3.0,
    "losses": 1.2,
    "check": 0.1,
    "harness": 5.5,
    "evaluate": 17.0,
    "tables": 0.2,
}


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of a run.

    Attributes:
        settings: the run's.
        out: its output directory.
        downloads: where the wheels are kept.
        scope: what it measures beside the fused model.
    """

    settings: Settings
    out: Path
    downloads: Path
    scope: Scope = field(default_factory=Scope)

    def all(self) -> list[Job]:
        """All of them; they run one at a time, with all cores."""
        jobs = [*self._start(), *self._specialists(), *self._fused()]
        jobs += [self._plain_losses(name) for name in DOMAINS]
        if self.scope.harness:
            jobs += self._harness()
        if self.scope.trained_on:
            for name in DOMAINS:
                jobs += self._trained_on(name)
        if self.scope.fine_tuned:
            jobs += self._fine_tuned()
        command = self._program("results", "--out", str(self.out), *self.scope.options())
        # made anew in every run: they depend on which jobs it has
        return [*jobs, self._job("tables", command, self.out / "table.md", *(job.name for job in jobs), always=True)]

    def _start(self) -> list[Job]:
        """SmolLM2 itself, which is the text specialist, and the data."""
        text, downloads = self.out / "specialists" / "text", ("--downloads", str(self.downloads))
        cut = () if self.settings.layers is None else ("--layers", str(self.settings.layers))
        source = self._program("source_model", *downloads, "--to", str(text), *cut)
        data = self._program("data", "--out", str(self.out), *downloads, "--tokenizer", str(text))
        return [self._job("source", source, text), self._job("data", data, self.out / "data", "source")]

    def _specialists(self) -> list[Job]:
        """The fine-tunes, and all three converted."""
        jobs = []
        for name in TUNED:
            to = self.out / "specialists" / name
            options = ("--out", str(self.out), "--start", str(self.out / "specialists" / "text"))
            command = self._program("tune", *options, "--domain", name, "--to", str(to))
            jobs.append(self._job(f"tune-{name}", command, to, "data"))
        for name in DOMAINS:
            to = self.out / "checkpoints" / name
            options = ("--hf", str(self.out / "specialists" / name), "--out", str(to))
            tool = str(REPOSITORY / "tools" / "convert_hf_to_mcore.py")
            command = (sys.executable, tool, *options, "--verify", "logits", "--overwrite")
            jobs.append(self._job(f"convert-{name}", command, to, self._specialist(name)))
        return jobs

    def _fused(self) -> list[Job]:
        """Both stages, and reports after each."""
        run, config = self.out / "run", ("--config", str(self.out / "config.yaml"))
        converted = tuple(f"convert-{name}" for name in DOMAINS)
        # warm-up, which is short, validates and saves in its end alone
        once = [f"{key}.interval={self.settings.warmup_steps}" for key in ("evaluation", "checkpoint")]
        warmup = self._megafuser("warmup", *config, *once)
        joint = self._megafuser("joint", *config)
        # what is wrong shows before what takes long
        plain = tuple(f"losses-{name}" for name in DOMAINS)
        check = self._program("checks", "--out", str(self.out))
        jobs = [
            self._job("warmup", warmup, run / "warmup" / "latest", "data", *converted, leaves=(run,), after=plain),
            self._job("check", check, self.out / "checks.json", "report-warmup", *plain),
            self._job("joint", joint, run / "joint" / "latest", "warmup", leaves=(run / "joint",), after=("check",)),
        ]
        test = ("--config", str(self.out / "test.yaml"))
        # of joint training the state that dev chose, and beside it the last one
        checkpoints = {"warmup": run / "warmup", "joint": self._chosen(), "last": run / "joint"}
        for name, checkpoint in checkpoints.items():
            report, stage = self.out / f"report-{name}", "warmup" if name == "warmup" else "joint"
            options = ("--checkpoint", str(checkpoint), *test, "--out", str(report), "--overwrite")
            command = self._megafuser("report", *options)
            jobs.append(self._job(f"report-{name}", command, report / "report.json", stage, leaves=(report,)))
        return jobs

    def _harness(self) -> list[Job]:
        """The harness's tasks, done by each specialist and by the fused model."""
        jobs = []
        for name in DOMAINS:
            to = self.out / "harness" / f"specialist-{name}.json"
            options = ("--model", str(self.out / "specialists" / name), "--tasks", ",".join(TASKS), *self._limit())
            command = self._program("harness", *options, "--to", str(to))
            jobs.append(self._job(f"harness-{name}", command, to, self._specialist(name), "data"))
        to = self.out / "harness" / "fused"
        options = ("--checkpoint", str(self._chosen()), "--tasks", ",".join(TASKS), "--out", str(to), "--overwrite")
        options += ("--include-path", str(HERE / "tasks"), "--allow-code-execution", *self._limit())
        # the harness compares what float32 answers, whatever the training multiplied in, and to whole prompts
        width = [
            f"{key}={HARNESS_POSITIONS}" for key in ("data.sequence_length", "warmup.row_width", "joint.row_width")
        ]
        command = self._megafuser("evaluate", *options, "precision.dtype=fp32", *width)
        return [*jobs, self._job("evaluate-fused", command, to / "results.json", "joint", leaves=(to,))]

    def _trained_on(self, name: str) -> list[Job]:
        """A specialist trained on, on its domain's samples of the fused run's steps, and its losses."""
        to = self.out / "trained-on" / name
        common = ("--out", str(self.out), "--start", str(self.out / "specialists" / name), "--domain", name)
        tune = self._program("tune", *common, "--fused-steps", "--to", str(to))
        losses = self.out / "trained-on" / f"{name}.json"
        command = self._losses("--model", str(to), "--to", str(losses))
        return [
            self._job(f"trained-on-{name}", tune, to, self._specialist(name), "data"),
            self._job(f"losses-trained-on-{name}", command, losses, f"trained-on-{name}"),
        ]

    def _fine_tuned(self) -> list[Job]:
        """SmolLM2 itself, fine-tuned on the very samples of the fused run's steps."""
        to, losses = self.out / "fine-tuned" / "all", self.out / "fine-tuned" / "all.json"
        options = ("--out", str(self.out), "--start", str(self.out / "specialists" / "text"), "--domain", "all")
        tune = self._program("tune", *options, "--fused-steps", "--to", str(to))
        command = self._losses("--model", str(to), "--to", str(losses))
        return [
            self._job("fine-tuned", tune, to, "data"),
            self._job("losses-fine-tuned", command, losses, "fine-tuned"),
        ]

    def _plain_losses(self, name: str) -> Job:
        """A specialist's losses on test by plain transformers code."""
        losses = self.out / "losses" / f"{name}.json"
        command = self._losses("--model", str(self.out / "specialists" / name), "--to", str(losses))
        return self._job(f"losses-{name}", command, losses, self._specialist(name), "data")

    def _losses(self, *options: str) -> tuple[str, ...]:
        return self._program("losses", "--out", str(self.out), *options)

    def _chosen(self) -> Path:
        """The state of joint training that is measured."""
        return self.out / "run" / "joint" / "best"

    def _limit(self) -> tuple[str, ...]:
        return () if self.settings.problems is None else ("--limit", str(self.settings.problems))

    def _specialist(self, name: str) -> str:
        """The job that leaves a specialist."""
        return f"tune-{name}" if name in TUNED else "source"

    def _job(
        self,
        name: str,
        command: tuple[str, ...],
        output: Path,
        *needs: str,
        leaves: tuple[Path, ...] = (),
        always: bool = False,
        after: tuple[str, ...] = (),
    ) -> Job:
        return Job(name, command, output, needs, 60 * MINUTES[name.split("-")[0]], leaves, always, after)

    def _program(self, name: str, *options: str) -> tuple[str, ...]:
        return (sys.executable, "-W", "ignore", "-m", f"examples.smollm2.{name}", *options)

    def _megafuser(self, *options: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "megafuser", *options)
