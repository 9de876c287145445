"""What a checkpoint tells of the data that its stage has seen, and of the training before that stage.

It is written by `training.checkpoint_contents` and read by `training.stages`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megafuser.checkpoint.manifest import Manifest
from megafuser.checkpoint.manifest_content import Counts, DomainCounts, EarlierStage
from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.data.loader import StepCounts


@dataclass(frozen=True)
class History:
    """The part of a checkpoint's manifest that grows with training.

    Attributes:
        domains: by name, what this stage has trained on.
        warmup: the warm-up that a joint stage came from.
        earlier_joint: the joint stages in between.
        validation: what the stage's validations have found.
        skipped: steps without an update, since loss or gradients were not finite.
    """

    domains: Mapping[str, DomainCounts]
    warmup: EarlierStage | None = None
    earlier_joint: Sequence[EarlierStage] = ()
    validation: ValidationRecord = field(default_factory=ValidationRecord)
    skipped: int = 0

    @classmethod
    def begin(cls, domains: Sequence[str], start: Manifest | None) -> "History":
        """The history of a stage that begins, from the weights of another stage's checkpoint or from none."""
        nothing: dict[str, DomainCounts] = {name: {"samples": 0, "tokens": 0, "response_tokens": 0} for name in domains}
        if start is None:
            return cls(nothing)
        kept: EarlierStage = {"step": start.run["step"], "counts": start.run["counts"]}
        if start.kind == "warmup":
            return cls(nothing, kept)
        return cls(nothing, start.run.get("warmup"), [*start.run.get("earlier_joint", []), kept])

    @classmethod
    def resume(cls, domains: Sequence[str], manifest: Manifest) -> "History":
        """The history that a checkpoint of the same stage and domains recorded."""
        content = manifest.run
        return cls(
            {name: content["counts"]["domains"][name] for name in domains},
            content.get("warmup"),
            content.get("earlier_joint", []),
            ValidationRecord.resume(manifest),
            content.get("skipped_steps", 0),
        )

    def after(self, step: StepCounts, *, skipped: bool = False) -> "History":
        """The history with one more step; its domains are in the same order."""
        added = zip(step.domain_samples, step.domain_tokens, step.domain_response_tokens, strict=True)
        domains: dict[str, DomainCounts] = {
            name: {
                "samples": counts["samples"] + samples,
                "tokens": counts["tokens"] + tokens,
                "response_tokens": counts["response_tokens"] + response_tokens,
            }
            for (name, counts), (samples, tokens, response_tokens) in zip(self.domains.items(), added, strict=True)
        }
        return dataclasses.replace(self, domains=domains, skipped=self.skipped + skipped)

    def validated(self, step: int, loss: float, samples: int) -> "History":
        """The history with one more validation: its step, its mean loss over all response tokens, and its samples.

        See `ValidationRecord`.
        """
        return dataclasses.replace(self, validation=self.validation.after(step, loss, samples))

    @property
    def counts(self) -> Counts:
        """What this stage has trained on, in all and by domain."""
        return {
            "samples": sum(counts["samples"] for counts in self.domains.values()),
            "tokens": sum(counts["tokens"] for counts in self.domains.values()),
            "response_tokens": sum(counts["response_tokens"] for counts in self.domains.values()),
            "domains": self.domains,
        }
