"""What a checkpoint tells of the data that its stage has seen, and of the training before that stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megafuser.checkpoint.manifest import Manifest
from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.data.loader import StepCounts

# What is known of a stage that a later one started from.
_KEPT = ("step", "counts")


@dataclass(frozen=True)
class History:
    """The part of a checkpoint's manifest that grows with training.

    Attributes:
        domains: by name, `samples`, `tokens` (without padding, the longest view of each sample) and `response_tokens`
            that this stage has trained on; a sample counts each time it is seen.
        before: `warmup`, the step and counts of the warm-up that a joint stage came from; `earlier_joint`, a list of
            the same of the joint runs in between. Absent where there were none.
        validation: what the stage's validations have found.
        skipped: steps without an update, since loss or gradients were not finite.
    """

    domains: Mapping[str, Mapping[str, int]]
    before: Mapping[str, Any]
    validation: ValidationRecord = field(default_factory=ValidationRecord)
    skipped: int = 0

    @classmethod
    def begin(cls, domains: Sequence[str], start: Manifest | None) -> "History":
        """The history of a stage that begins, from the weights of another stage's checkpoint or from none."""
        before: dict[str, Any] = {}
        if start is not None:
            before = {key: start.content[key] for key in ("warmup", "earlier_joint") if key in start.content}
            kept = {key: start.content[key] for key in _KEPT}
            before |= (
                {"warmup": kept}
                if start.kind == "warmup"
                else {"earlier_joint": [*before.get("earlier_joint", []), kept]}
            )
        return cls({name: {"samples": 0, "tokens": 0, "response_tokens": 0} for name in domains}, before)

    @classmethod
    def resume(cls, domains: Sequence[str], manifest: Manifest) -> "History":
        """The history that a checkpoint of the same stage and domains recorded."""
        content = manifest.content
        before: dict[str, Any] = {key: content[key] for key in ("warmup", "earlier_joint") if key in content}
        counts = {name: content["counts"]["domains"][name] for name in domains}
        return cls(counts, before, ValidationRecord.resume(manifest), content.get("skipped_steps", 0))

    def after(self, step: StepCounts, *, skipped: bool = False) -> "History":
        """The history with one more step; its domains are in the same order."""
        added = zip(step.domain_samples, step.domain_tokens, step.domain_response_tokens, strict=True)
        domains = {
            name: {
                "samples": counts["samples"] + samples,
                "tokens": counts["tokens"] + tokens,
                "response_tokens": counts["response_tokens"] + response_tokens,
            }
            for (name, counts), (samples, tokens, response_tokens) in zip(self.domains.items(), added, strict=True)
        }
        return dataclasses.replace(self, domains=domains, skipped=self.skipped + skipped)

    def validated(self, step: int, loss: float) -> "History":
        """The history with one more validation: its step and its mean loss over all response tokens."""
        return dataclasses.replace(self, validation=self.validation.after(step, loss))

    def to_content(self) -> dict[str, Any]:
        """What a manifest's content holds of it."""
        total = {
            key: sum(counts[key] for counts in self.domains.values())
            for key in ("samples", "tokens", "response_tokens")
        }
        counts = total | {"domains": self.domains}
        skipped = {"skipped_steps": self.skipped} if self.skipped else {}
        return {"counts": counts, **skipped, **self.before, **self.validation.to_content()}
