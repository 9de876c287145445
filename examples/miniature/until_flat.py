"""Training from scratch until the dev loss is flat: a constant learning rate, then a decay to 0 from the best state."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from evaluate_model import mean_loss
from samples import Batch, EncodedSample, batches, response_loss
from settings import Settings

RATE_WARMUP_STEPS = 20


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
        curve: a line for each look at the dev loss.
    """

    model: Any
    train: Mapping[str, Sequence[EncodedSample]]
    dev: Mapping[str, Sequence[EncodedSample]]
    settings: Settings
    most_tokens: int
    random: Random
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
        self._state: dict[str, Any] = {}
        self._batches = self._endless()

    def run(self) -> dict[str, Any]:
        """Trains; returns what training.json says of it."""
        settings = self.settings
        misses = 0
        best_step = 0
        while misses < settings.flat_patience and self._tokens < self.most_tokens:
            for _ in range(settings.flat_interval):
                self._step(min(1.0, (self._steps + 1) / RATE_WARMUP_STEPS))
            before = self._best
            loss = self._look("constant")
            best_step = self._steps if loss < before else best_step
            if loss < self._reference - settings.flat_margin:
                self._reference, misses = loss, 0
            else:
                misses += 1
        flat = misses >= settings.flat_patience
        self.model.load_state_dict(self._state)
        length = max(1, round(settings.flat_decay * best_step))
        for index in range(length):
            self._step(1.0 - index / length)
            if (index + 1) % settings.flat_interval == 0 or index + 1 == length:
                self._look("decay")
        self.model.load_state_dict(self._state)
        return {
            "flat": flat,
            "steps": self._steps,
            "best_step": best_step,
            "tokens": self._tokens,
            "response_tokens": self._response_tokens,
            "dev": self._best,
            "curve": self.curve,
        }

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
