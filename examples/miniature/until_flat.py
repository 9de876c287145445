"""Training from scratch until the dev loss is flat: a constant learning rate, then a decay to 0 from the best state."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from examples.miniature.evaluate_model import mean_loss
from examples.miniature.settings import Settings
from examples.quickstart.samples import Batch, EncodedSample, batches, response_loss

RATE_WARMUP_STEPS = 20
# Looks at the dev loss between two times that the training is kept: at most so much of it is lost.
LOOKS_BETWEEN_KEPT = 4
# Of a training, beside its weights and its curve.
NUMBERS = ("_steps", "_tokens", "_response_tokens", "_best", "_reference", "_best_step", "_misses", "_decayed")


@dataclass
class Trainer:
    """One training from scratch.

    Attributes:
        model: trained in place; in the end it has the state with the lowest dev loss.
        train: training samples by domain; every domain counts alike.
        dev: dev samples by domain.
        settings: learning rates and what counts as flat.
        most_tokens: where it ends if it is not flat before.
        random: shuffles.
        kept: file that the training is kept in from time to time, and goes on from with the same results.
        curve: a line for each look at the dev loss.
    """

    model: Any
    train: Mapping[str, Sequence[EncodedSample]]
    dev: Mapping[str, Sequence[EncodedSample]]
    settings: Settings
    most_tokens: int
    random: Random
    kept: Path | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes the optimizer."""
        layers = list(self.model.model.layers.parameters())
        inner = {id(parameter) for parameter in layers}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in inner]
        rates = (self.settings.layer_rate, self.settings.embedding_rate)
        groups = [{"params": own, "lr": rate} for own, rate in zip((layers, others), rates, strict=True)]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self._rates = rates
        self._steps = self._tokens = self._response_tokens = 0
        self._best = self._reference = float("inf")
        self._best_step = self._misses = 0
        self._decayed: int | None = None  # steps of the decay that are done; None before it
        self._state: dict[str, Any] = {}
        self._batches = self._endless()

    def run(self) -> dict[str, Any]:
        """Trains; returns what training.json says of it."""
        settings = self.settings
        self._go_on()
        # what the decay takes is set aside
        constant = self.most_tokens / (1 + settings.flat_decay)
        while self._decayed is None and self._misses < settings.flat_patience and self._tokens < constant:
            for _ in range(settings.flat_interval):
                self._step(min(1.0, (self._steps + 1) / RATE_WARMUP_STEPS))
            before = self._best
            loss = self._look("constant")
            self._best_step = self._steps if loss < before else self._best_step
            if loss < self._reference - settings.flat_margin:
                self._reference, self._misses = loss, 0
            else:
                self._misses += 1
            self._keep()
        if self._decayed is None:
            self.model.load_state_dict(self._state)
            self._decayed = 0
        length = max(1, round(settings.flat_decay * self._best_step))
        while self._decayed < length:
            self._step(1.0 - self._decayed / length)
            self._decayed += 1
            if self._decayed % settings.flat_interval == 0 or self._decayed == length:
                self._look("decay")
                self._keep()
        self.model.load_state_dict(self._state)
        return {
            "flat": self._misses >= settings.flat_patience,
            "steps": self._steps,
            "best_step": self._best_step,
            "tokens": self._tokens,
            "response_tokens": self._response_tokens,
            "dev": self._best,
            "curve": self.curve,
        }

    def _keep(self) -> None:
        """Writes all that the rest of the training depends on, by rename."""
        if self.kept is None or len(self.curve) % LOOKS_BETWEEN_KEPT:
            return
        content = {
            "key": self._key(),
            "numbers": {name: getattr(self, name) for name in NUMBERS},
            "curve": self.curve,
            "model": self.model.state_dict(),
            "best": self._state,
            "optimizer": self._optimizer.state_dict(),
        }
        temporary = self.kept.with_name(f"{self.kept.name}.tmp")
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.kept)

    def _go_on(self) -> None:
        """Goes on from what was kept of this same training, if any; the batches that are done are drawn once more."""
        if self.kept is None or not self.kept.exists():
            return
        content = torch.load(self.kept, weights_only=True)
        if content["key"] != self._key():
            return
        for name, value in content["numbers"].items():
            setattr(self, name, value)
        self.curve = content["curve"]
        self.model.load_state_dict(content["model"])
        self._state = content["best"]
        self._optimizer.load_state_dict(content["optimizer"])
        for _ in range(self._steps):
            next(self._batches)
        print(f"going on after step {self._steps}", flush=True)

    def _key(self) -> str:
        """Tells one training from another: a hash of settings and samples."""
        settings = sorted(dataclasses.asdict(self.settings).items())
        return hashlib.sha256(repr((settings, self.most_tokens, self.train, self.dev)).encode()).hexdigest()

    def _endless(self) -> Iterator[Batch]:
        most = max(map(len, self.train.values()))
        while True:
            pool: list[EncodedSample] = []
            for samples in self.train.values():
                whole, rest = divmod(most, len(samples))
                pool += [*samples] * whole + self.random.sample(list(samples), rest)
            yield from batches(pool, self.settings.batch_tokens, self.random)

    def _step(self, factor: float) -> None:
        batch = next(self._batches)
        self.model.train()
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate
        loss, count = response_loss(self.model, batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        self._tokens += int((batch.ids != 0).sum())
        self._response_tokens += batch.response_tokens

    def _look(self, phase: str) -> float:
        """The dev loss; where it is the lowest so far, the state is kept."""
        losses = {domain: mean_loss(self.model, samples) for domain, samples in self.dev.items()}
        loss = sum(losses.values()) / len(losses)
        line = {"step": self._steps, "tokens": self._tokens, "phase": phase, "dev": loss}
        self.curve.append(line)
        print(line, flush=True)
        if loss < self._best:
            self._best = loss
            self._state = deepcopy(self.model.state_dict())
        return loss
