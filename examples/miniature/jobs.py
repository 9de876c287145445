"""What a run consists of: every job with its command, its output and the jobs that it needs."""

import sys
from dataclasses import dataclass
from pathlib import Path

from examples.miniature.fused_config import Variant, config_file, core_variants, other_variants
from examples.miniature.problems import MAX_NEW_TOKENS
from examples.miniature.settings import COMMON_TEMPLATE, FULL, Settings
from examples.quickstart.samples import DOMAINS
from examples.shared.scheduler import Job

REPOSITORY = Path(__file__).parents[2]
MERGES = ("linear", "ties", "dare")
MIXES = ("logits", "probabilities")
# Measured on one core: the seconds of training a specialist of FULL's size on a thousand tokens, and what other
# trainings take of them (warm-up and joint for all three specialists; the larger model has three times the arithmetic).
SECONDS_PER_KILOTOKEN = 0.2
WARMUP_FACTOR = 1.0
JOINT_FACTOR = 2.4
MIXTURE_FACTOR = 4.0
BTX_FACTOR = 1.5
LARGER_FACTOR = 3.0
TOKENS_PER_SAMPLE = 140
START_SECONDS = 12.0


@dataclass
class Jobs:
    """Collects the jobs of a run.

    Attributes:
        settings: the run's.
        out: its output directory.
        downloads: where the wheels are kept.
        merging: the Python that has mergekit.
    """

    settings: Settings
    out: Path
    downloads: Path
    merging: Path

    def all(self, seeds: tuple[int, ...]) -> list[Job]:
        """The jobs of the given seeds, and the tables over them."""
        data = ("--out", str(self.out), "--downloads", str(self.downloads))
        jobs = [Job("data", self._program("data", *data), self.out / "data", (), 60)]
        for seed in seeds:
            jobs += self._specialists(seed) + self._single(seed)
            for variant in core_variants(self.settings):
                jobs += self._fused(seed, variant)
            if seed == self.settings.seeds[0]:
                jobs += self._first_seed(seed)
        needs = tuple(job.name for job in jobs)
        names = ("--seeds", ",".join(map(str, seeds)))
        command = self._program("results", "--out", str(self.out), *names)
        return [*jobs, Job("tables", command, self.out / "table.md", needs, 20, always=True)]

    def _first_seed(self, seed: int) -> list[Job]:
        """The rows that only one seed has."""
        own = self._own(seed)
        jobs: list[Job] = []
        for variant in other_variants(self.settings):
            jobs += self._fused(seed, variant, core=False)
        # from the start of the run, and longer than anything else
        larger = LARGER_FACTOR * self._seconds(self.settings.larger_factor * self.settings.flat_most_tokens / 1000)
        jobs += self._train(seed, "larger", "larger", (), ("data",), larger)
        jobs += self._evaluate(seed, "larger", own / "models" / "larger", COMMON_TEMPLATE)
        specialists = tuple(f"seed{seed}-specialist-{name}" for name in DOMAINS)
        start = ("--start", str(own / "specialists"))
        jobs += self._train(seed, "btx", "btx", start, specialists, BTX_FACTOR * self._same_data_seconds())
        jobs += self._evaluate(seed, "btx", own / "models" / "btx", COMMON_TEMPLATE)
        for mix in MIXES:
            output = own / "evaluations" / f"mixture-{mix}.json"
            command = self._program("mixtures", *self._common(seed), "--mix", mix, "--to", str(output))
            seconds = MIXTURE_FACTOR * self._same_data_seconds()
            jobs.append(Job(f"seed{seed}-mixture-{mix}", command, output, (*specialists, f"seed{seed}-gate"), seconds))
        output = own / "untrained"
        command = self._tool(
            "convert_mcore_to_hf.py",
            *("--checkpoint", str(own / "runs" / "joint-only" / "warmup"), "--out", str(output), "--overwrite"),
        )
        jobs.append(Job(f"seed{seed}-gate", command, output, (f"seed{seed}-warmup-joint-only",), START_SECONDS))
        return jobs

    def _specialists(self, seed: int) -> list[Job]:
        """From scratch, converted, evaluated, and trained on after the fused run."""
        own = self._own(seed)
        jobs: list[Job] = []
        for name in DOMAINS:
            seconds = self._seconds(self.settings.flat_most_tokens / 1000)
            to = own / "specialists" / name
            command = self._program("train", "specialist", *self._common(seed), "--domain", name, "--to", str(to))
            job = f"seed{seed}-specialist-{name}"
            jobs.append(Job(job, command, to, ("data",), seconds))
            jobs += self._evaluate(seed, f"specialist-{name}", to, name, job)
            there = own / "checkpoints" / name
            convert = ("--hf", str(to), "--out", str(there), "--verify", "logits", "--overwrite")
            command = self._tool("convert_hf_to_mcore.py", *convert)
            jobs.append(Job(f"seed{seed}-convert-{name}", command, there, (job,), START_SECONDS))
            options = (
                *("--domain", name, "--start", str(own / "specialists")),
                *("--metrics", str(own / "runs" / "balanced" / "metrics.jsonl")),
            )
            seconds = self._same_data_seconds() / 3
            needs = (job, f"seed{seed}-joint-balanced")
            jobs += self._train(seed, "trained-on", f"trained-on-{name}", options, needs, seconds)
            jobs += self._evaluate(seed, f"trained-on-{name}", own / "models" / f"trained-on-{name}", name)
        return jobs

    def _single(self, seed: int) -> list[Job]:
        """Fine-tunes on the fused run's data, and merges."""
        own = self._own(seed)
        start = str(own / "specialists")
        specialists = tuple(f"seed{seed}-specialist-{name}" for name in DOMAINS)
        evaluations = tuple(f"seed{seed}-evaluate-specialist-{name}" for name in DOMAINS)
        jobs: list[Job] = []
        options: tuple[str, ...]
        # the best one by dev on every seed; the first seed has all three
        for name in DOMAINS if seed == self.settings.seeds[0] else ("best",):
            options = ("--domain", name, "--start", start, "--evaluations", str(own / "evaluations"))
            needs = evaluations if name == "best" else specialists
            title = f"fine-tune-{name}"
            jobs += self._train(seed, "fine-tune", title, options, needs, self._same_data_seconds())
            # the template of `best` is known only then: all are evaluated, and its own is taken
            templates = ",".join(DOMAINS) if name == "best" else name
            jobs += self._evaluate(seed, title, own / "models" / title, templates)
        for method in MERGES:
            to = own / "models" / method
            options = ("--method", method, "--specialists", start, "--out", str(to), "--seed", str(seed))
            command = (str(self.merging), str(REPOSITORY / "examples" / "baselines" / "merge.py"), *options)
            jobs.append(Job(f"seed{seed}-{method}", command, to, specialists, 20))
            jobs += self._evaluate(seed, method, to, ",".join(DOMAINS))
        return jobs

    def _fused(self, seed: int, variant: Variant, core: bool = True) -> list[Job]:
        """Both stages, their reports on test, and answers to the problems."""
        own, name = self._own(seed), variant.name
        run = own / "runs" / name
        config = ("--config", str(config_file(self.out, seed, name)))
        converted = tuple(f"seed{seed}-convert-{domain}" for domain in DOMAINS)
        samples = 3 * self.settings.samples_per_domain
        kilotokens = samples * TOKENS_PER_SAMPLE / 1000
        warmup = START_SECONDS + WARMUP_FACTOR * self._seconds(kilotokens * variant.warmup_steps)
        joint = 2 * START_SECONDS + JOINT_FACTOR * self._seconds(kilotokens * self.settings.joint_steps)
        # variants of one seed share the tokenized samples: the first one builds them
        first = core_variants(self.settings)[0].name
        after = () if name == first else (f"seed{seed}-warmup-{first}",)
        jobs = [
            Job(
                f"seed{seed}-warmup-{name}",
                self._megafuser("warmup", *config),
                run / "warmup" / "latest",
                needs=converted,
                seconds=warmup,
                leaves=(run,),
                after=after,
            ),
            Job(
                f"seed{seed}-joint-{name}",
                self._megafuser("joint", *config),
                run / "joint" / "latest",
                needs=(f"seed{seed}-warmup-{name}",),
                seconds=joint,
                leaves=(run / "joint",),
            ),
        ]
        test = ("--config", str(config_file(self.out, seed, name, "test.yaml")))
        # joint-only after its warm-up is the untrained gate: the uniform mixture
        stages = ("joint",) if name == "unbalanced" or not core else ("warmup", "joint")
        for stage in stages:
            report = own / "reports" / f"{name}-{stage}"
            checkpoint, needs = ("--checkpoint", str(run / stage)), (f"seed{seed}-{stage}-{name}",)
            if stage == "joint" or name == first:
                command = self._megafuser("report", *checkpoint, *test, "--out", str(report), "--overwrite")
                title = f"seed{seed}-report-{name}-{stage}"
                jobs.append(Job(title, command, report / "report.json", needs, 25, (report,)))
            if core:
                to = own / "answers" / f"{name}-{stage}.jsonl"
                problems = ("--file", str(self.out / "data" / "problems.jsonl"))
                options = ("--max-new-tokens", str(MAX_NEW_TOKENS), "--out", str(to), "--overwrite")
                command = self._megafuser("generate", *checkpoint, *problems, *options)
                jobs.append(Job(f"seed{seed}-generate-{name}-{stage}", command, to, needs, 25))
        return jobs

    def _train(
        self, seed: int, what: str, name: str, options: tuple[str, ...], needs: tuple[str, ...], seconds: float
    ) -> list[Job]:
        to = self._own(seed) / "models" / name
        command = self._program("train", what, *self._common(seed), *options, "--to", str(to))
        return [Job(f"seed{seed}-{name}", command, to, needs, seconds)]

    def _evaluate(self, seed: int, name: str, model: Path, templates: str, need: str | None = None) -> list[Job]:
        to = self._own(seed) / "evaluations" / f"{name}.json"
        options = ("--out", str(self.out), "--model", str(model), "--templates", templates, "--to", str(to))
        size = self._seconds(1.0) / SECONDS_PER_KILOTOKEN * self.settings.held_out / FULL.held_out
        seconds = 6 + 22 * size * len(templates.split(","))
        command = self._program("evaluate_model", *options)
        return [Job(f"seed{seed}-evaluate-{name}", command, to, (need or f"seed{seed}-{name}",), seconds)]

    def _own(self, seed: int) -> Path:
        return self.out / f"seed{seed}"

    def _common(self, seed: int) -> tuple[str, ...]:
        return ("--out", str(self.out), "--seed", str(seed))

    def _program(self, name: str, *options: str) -> tuple[str, ...]:
        return (sys.executable, "-W", "ignore", "-m", f"examples.miniature.{name}", *options)

    def _tool(self, name: str, *options: str) -> tuple[str, ...]:
        return (sys.executable, str(REPOSITORY / "tools" / name), *options)

    def _megafuser(self, *options: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "megafuser", *options)

    def _seconds(self, kilotokens: float) -> float:
        """Of training a specialist on so many thousand tokens."""
        parameters = self.settings.shape.hidden_size * self.settings.shape.layers
        size = parameters / (FULL.shape.hidden_size * FULL.shape.layers)
        return kilotokens * SECONDS_PER_KILOTOKEN * size

    def _same_data_seconds(self) -> float:
        """Of one specialist's training on what the fused run sees in both stages."""
        steps = self.settings.warmup_steps + self.settings.joint_steps
        return START_SECONDS + self._seconds(steps * 3 * self.settings.samples_per_domain * TOKENS_PER_SAMPLE / 1000)
