"""What a run of the example is: sizes, lengths and learning rates; one set for the whole run, one to try it."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from examples.quickstart.samples import DOMAINS

# The samples of a domain that its specialist is tuned on, those that fusion is, and held out.
PARTS = ("train", "fusion", "dev", "test")
# SmolLM2's own format, ChatML, without the system prompt that its chat template puts in front of every chat: that
# would be a quarter of all tokens here, the same ones each time. `megafuser` knows it under TEMPLATE's name.
TEMPLATE = "chatml"
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# The same for a Hugging Face tokenizer, for the harness's own models.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Tasks of the harness, with the metric that the table shows; all but HumanEval's problems are below `tasks`.
TASKS = {
    "humaneval_short": "pass@1",
    "short_functions": "pass@1",
    "gsm_symbolic_held_out": "exact_match",
    "prose_choice": "acc",
}


@dataclass(frozen=True)
class Settings:
    """One run's settings; they are written to settings.json, and an output directory belongs to one set.

    Attributes:
        seed: of everything that is drawn.
        layers: of the models; None is all of SmolLM2's 30.
        most_tokens: of a sample with its prompt, by domain, and of a CodeIO program; longer ones are left out whole.
        codeio_share: of code's samples in each part but train, which has the programs that are left.
        library: functions of the standard library in train at most.
        gsm_per_template: worded problems made of each of gsm_symbolic's templates.
        fusion: samples of each domain that no specialist is tuned on: the fused run trains on them, and specialists
            that are trained on beside it.
        dev: samples of each domain that the length of a fine-tune is chosen by, and that validate the fused run.
        test: samples of each domain that are reported.
        tune_tokens: of each fine-tune, prompts included.
        tune_rate: its learning rate.
        tune_samples: of one of its steps, and at once in those that have more.
        tune_looks: how often its dev loss is looked at; the state with the lowest is kept.
        samples_per_domain: of a step of both of the fused stages.
        warmup_steps: of the gate.
        warmup_rate: its learning rate.
        joint_steps: of everything.
        joint_rate: its learning rate.
        problems: of each task of the harness; None is all.
        dtype: of the fused run's matrix products; weights and optimizer are in float32 either way.
    """

    seed: int = 1234
    layers: int | None = None
    most_tokens: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"text": 112, "code": 128, "codeio": 256, "math": 160}
    )
    codeio_share: float = 0.1
    library: int = 1300
    gsm_per_template: int = 60
    # as many as the fused run's steps have
    fusion: int = 560
    dev: int = 24
    test: int = 100
    tune_tokens: int = 50_000
    tune_rate: float = 1e-4
    tune_samples: int = 8
    tune_looks: int = 6
    samples_per_domain: int = 4
    warmup_steps: int = 40
    warmup_rate: float = 1e-3
    joint_steps: int = 100
    joint_rate: float = 3e-5
    problems: int | None = None
    dtype: str = "fp32"


FULL = Settings()
FAST = Settings(
    layers=2,
    fusion=24,
    dev=8,
    test=16,
    tune_tokens=2_000,
    tune_looks=2,
    samples_per_domain=2,
    warmup_steps=4,
    joint_steps=4,
    problems=2,
)


@dataclass(frozen=True)
class Scope:
    """What a run measures beside the fused model and its specialists; may be changed from one call to the next.

    Attributes:
        trained_on: whether the specialists are also trained further, each on its own domain.
        harness: whether all models do the harness's tasks.
        fine_tuned: whether SmolLM2 itself is fine-tuned on the fused run's samples.
    """

    trained_on: bool = True
    harness: bool = True
    fine_tuned: bool = False

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Adds its options to a program's."""
        only = "without the specialists that are trained further"
        parser.add_argument("--no-trained-on", action="store_false", dest="trained_on", help=only)
        only = "without the tasks of the harness"
        parser.add_argument("--no-harness", action="store_false", dest="harness", help=only)
        also = "also SmolLM2 itself, fine-tuned on the samples that the fused model is trained on"
        parser.add_argument("--fine-tuned", action="store_true", help=also)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Of a program's options."""
        return cls(args.trained_on, args.harness, args.fine_tuned)

    def options(self) -> tuple[str, ...]:
        """The options that give it."""
        given = {
            "--no-trained-on": not self.trained_on,
            "--no-harness": not self.harness,
            "--fine-tuned": self.fine_tuned,
        }
        return tuple(option for option, is_given in given.items() if is_given)


def as_json(settings: Settings) -> dict[str, Any]:
    """For settings.json."""
    return dataclasses.asdict(settings)


def part_file(out: Path, domain: str, part: str) -> Path:
    """The samples of a domain in one of `PARTS`."""
    if domain not in DOMAINS or part not in PARTS:
        raise ValueError(f"no samples of {domain!r} in {part!r}")
    return out / "data" / f"{domain}.{part}.jsonl"
