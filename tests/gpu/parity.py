"""The same weights through both backends and dtypes, and a whole trio against float64 Hugging Face models."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megafuser.checkpoint.specialist_sources import sources_from_config
from megafuser.config.compute import PrecisionConfig
from megafuser.config.load import load_config
from megafuser.data.loader import StepBatches
from megafuser.data.sampler import Sampler
from megafuser.training.checkpoint_contents import load_converted
from megafuser.training.engine import Engine
from megafuser.training.session import Session, prepare
from tests.fused_case import make_case, samples_of, write_config
from tests.gpu.models import (
    TINY,
    TRANSFORMER_ENGINE,
    Machine,
    Size,
    build,
    copy_weights,
    engine_of,
    gradient_errors,
    gradients,
    hidden_states,
    random_samples,
    relative,
    row_of,
    trio,
)
from tests.gpu.report import Finding
from tests.reference import DenseFusion, relative_difference

MEDIUM = Size(hidden=1024, layers=4, heads=16, groups=4, channels=64, vocabulary=8192)
# Transformer Engine multiplies fp32 matrices in TF32, whose mantissa has 10 bits; bf16's has 7.
LIMITS = {
    "fp32": {"hidden states": 5e-3, "loss": 1e-3, "gradients, all": 1e-2, "gradients, worst parameter": 5e-2},
    "bf16": {"hidden states": 3e-2, "loss": 1e-2, "gradients, all": 5e-2, "gradients, worst parameter": 0.2},
}
# In the same dtype, Transformer Engine's errors may be this many times those of the torch backend.
MORE_ROUNDING = 2.0
# Against float64 from the texts on: PyTorch's fp32 is exact to rounding.
DENSE_LIMITS = {
    ("torch", "fp32"): {"loss": 1e-5, "gradients, worst": 1e-4},
    (TRANSFORMER_ENGINE, "fp32"): {"loss": 1e-3, "gradients, worst": 5e-2},
    ("torch", "bf16"): {"loss": 1e-2, "gradients, worst": 0.1},
    (TRANSFORMER_ENGINE, "bf16"): {"loss": 1e-2, "gradients, worst": 0.1},
}


@dataclass(frozen=True)
class _Result:
    """What one combination makes of the row."""

    hidden: list[torch.Tensor]
    loss: float
    gradients: dict[str, torch.Tensor]


class Parity:
    """Measures a combination of backend and dtype against fp32 on the torch backend, which is computed once."""

    def __init__(self, machine: Machine) -> None:
        """Makes the weights and the row."""
        self.machine = machine
        self.cards = trio(TINY if machine.tiny else MEDIUM)
        vocabulary = self.cards["plain"].vocab_size
        lengths, width = ([9, 20, 14], 48) if machine.tiny else ([300, 77, 512, 9], 1024)
        self.row = row_of(machine, random_samples(lengths, vocabulary), width)
        self.source = build(machine, self.cards, PrecisionConfig(dtype="fp32"), "torch")
        self.reference = self._gradients_of("torch", "fp32")
        self.rounding: dict[str, float] = {}

    def compare(self, backend: str, dtype: str) -> Finding:
        """The relative errors of hidden states, loss and gradients."""
        self.machine.require(backend)
        result = self._gradients_of(backend, dtype)
        pairs = zip(result.hidden, self.reference.hidden, strict=True)
        numbers = {
            "hidden states": max(relative(ours, reference) for ours, reference in pairs),
            "loss": abs(result.loss / self.reference.loss - 1),
            **gradient_errors(result.gradients, self.reference.gradients),
        }
        limits = dict(LIMITS[dtype])
        if (backend, dtype) == ("torch", "bf16"):
            self.rounding = numbers
        elif dtype == "bf16" and self.rounding:
            for name in ("hidden states", "gradients, all"):
                numbers[f"{name}, over torch bf16's"] = numbers[name] / self.rounding[name]
                limits[f"{name}, over torch bf16's"] = MORE_ROUNDING
        return Finding(numbers, limits)

    def _gradients_of(self, backend: str, dtype: Any) -> _Result:
        model = build(self.machine, self.cards, PrecisionConfig(dtype=dtype), backend)
        copy_weights(self.source, model)
        hidden = hidden_states(model, self.row)
        return _Result(hidden, *gradients(engine_of(model), [self.row]))


def against_dense(machine: Machine, backend: str, dtype: str) -> Finding:
    """A step's mean loss and gradients from the texts on; of gate, embeddings and heads, whose shapes are alike."""
    machine.require(backend)
    # weights so small that rounding does not grow from layer to layer
    overrides: dict[str, Any] = {"initializer_range": 0.1}
    if not machine.tiny:
        overrides = {"initializer_range": 0.04, "hidden_size": 256, "intermediate_size": 640, "head_dim": 64}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        values = make_case(root, train=2, valid=1, **overrides)
        values |= {"device": machine.device.type, "backend": backend, "precision": {"dtype": dtype}}
        for stage in ("warmup", "joint"):
            values[stage]["samples_per_domain"] = 2
        config = load_config(write_config(root / "config.yaml", values), [])
        session = prepare(config, sources_from_config(config))
        (model,) = session.build_model(trained=session.specialist_names)
        load_converted([model], session.sources)
        with torch.no_grad():  # a gate that has left its uniform start
            model.gate.fc2.weight.normal_(0, 0.5, generator=torch.Generator(machine.device).manual_seed(1))  # type: ignore
        engine = Engine([model], config.optimizer, config.joint, domains=3, joint=True)
        rows, samples = _step(session, machine)
        loss, ours = gradients(engine, rows)
        directories = {name: root / "hf" / name for name in session.specialist_names}
        gate = {name: value.cpu() for name, value in model.gate.state_dict().items()}  # type: ignore[union-attr]
        dense_loss, dense = DenseFusion(directories, gate, session.shared_vocabulary).batch_gradients(samples)
    pairs = {f"gate.{name}": f"gate.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight")}
    for index, name in enumerate(session.specialist_names):
        pairs[f"specialists.{index}.embedding.word_embeddings.weight"] = f"{name}.model.embed_tokens.weight"
        pairs[f"specialists.{index}.output_layer.weight"] = f"{name}.lm_head.weight"
    errors = [relative_difference(ours[key].cpu()[: len(dense[other])], dense[other]) for key, other in pairs.items()]
    numbers = {"loss": abs(loss / dense_loss - 1), "gradients, worst": max(errors)}
    return Finding(numbers, DENSE_LIMITS[backend, dtype])


def _step(session: Session, machine: Machine) -> tuple[list[Any], list[dict[str, Any]]]:
    """The first step's rows on the device, and the same samples as texts."""
    (train,) = session.load_data("train")
    settings = session.config.joint
    sampler = Sampler([len(d) for d in train], settings.samples_per_domain, True, session.config.seed, "joint")
    rows = StepBatches(train, sampler, session.config.data.sequence_length, ranks=1, rank=0).rows(1)
    references = [reference for row in rows for reference in row.references.tolist()]
    texts = [samples_of(session.domain_names[domain], 2)[sample] for domain, sample in references]
    return [row.to(machine.device) for row in rows], texts


def checks(machine: Machine) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Every combination."""
    parity = Parity(machine)
    for backend, dtype in (("torch", "bf16"), (TRANSFORMER_ENGINE, "fp32"), (TRANSFORMER_ENGINE, "bf16")):
        yield f"{backend} {dtype} against torch fp32", partial(parity.compare, backend, dtype)
    for backend, dtype in DENSE_LIMITS:
        yield f"{backend} {dtype} against Hugging Face float64", partial(against_dense, machine, backend, dtype)
