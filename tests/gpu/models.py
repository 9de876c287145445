"""Random trios, rows and engines on any device and backend; nothing here knows which of them it runs on."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.config.gate import GateConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import StageConfig
from megafuser.data.row_building import build_row
from megafuser.fusion.model import FusedModel, build_fused_model
from megafuser.fusion.row import PackedRow
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import World
from megafuser.specialist.card import ArchitectureCard
from megafuser.training.engine import Engine
from tests.gpu.report import Skip
from tests.small_domain import TokenStore
from tests.unit.specialist.small_card import CARD

GATE = 64
TRANSFORMER_ENGINE = "transformer_engine"


@dataclass(frozen=True)
class Machine:
    """What the suite runs on.

    Attributes:
        device: where.
        backend: the layers under test.
        tiny: sizes for a CPU's few seconds, which exercise the suite itself.
    """

    device: torch.device
    backend: str
    tiny: bool

    def require(self, backend: str) -> None:
        """Skips what needs a backend that is not there."""
        if backend != TRANSFORMER_ENGINE:
            return
        if self.device.type != "cuda":
            raise Skip("Transformer Engine computes on CUDA only")
        if self.backend != TRANSFORMER_ENGINE:
            raise Skip("left out by --backend torch")
        if find_spec(TRANSFORMER_ENGINE) is None:
            raise Skip("Transformer Engine is not installed")

    @contextmanager
    def one_rank(self) -> Iterator[None]:
        """A world of one, with megatron-core's parallel state and a seed."""
        alone = World(rank=0, size=1, local_rank=self.device.index or 0, launcher="single", local_size=1)
        with distributed(ParallelConfig(), seed=0, device=self.device, world=alone):
            yield


@dataclass(frozen=True)
class Size:
    """Of each specialist of a trio; every width is a multiple of 128, which blockwise FP8 wants, unless tiny."""

    hidden: int
    layers: int
    heads: int
    groups: int
    channels: int
    vocabulary: int


TINY = Size(hidden=32, layers=2, heads=4, groups=2, channels=8, vocabulary=128)


def trio(size: Size) -> dict[str, ArchitectureCard]:
    """Three specialists with grouped queries, alike in size: plain, with QKV biases, and with QK norms."""
    plain = dataclasses.replace(
        CARD,
        num_layers=size.layers,
        hidden_size=size.hidden,
        ffn_hidden_size=size.hidden * 5 // 2,
        num_attention_heads=size.heads,
        num_query_groups=size.groups,
        kv_channels=size.channels,
        vocab_size=size.vocabulary,
        max_position_embeddings=4096,
        rotary_base=1e4,
        norm_epsilon=1e-5,
    )
    biased = dataclasses.replace(plain, family="qwen2", qkv_bias=True, rotary_base=1e6)
    return {"plain": plain, "biased": biased, "normed": dataclasses.replace(plain, family="qwen3", qk_norm=True)}


def build(
    machine: Machine,
    cards: Mapping[str, ArchitectureCard],
    precision: PrecisionConfig,
    backend: str,
    *,
    trains: bool = True,
) -> FusedModel:
    """A fused model with random weights that bf16 holds exactly, for joint training or not; see `Machine.one_rank`."""
    model = build_fused_model(
        cards,
        parallel=ParallelConfig(),
        precision=precision,
        backend=backend,
        gate=GateConfig(GATE),
        shared_vocabulary=min(card.vocab_size for card in cards.values()),
        seed=0,
        trained=None if trains else (),
    ).to(machine.device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, device=machine.device)
            norm = "norm" in name and parameter.dim() == 1
            value = 1 + 0.1 * noise if norm else noise * (0.1 if name.startswith("gate") else 0.02)
            parameter.copy_(value.bfloat16())
    return model


def engine_of(model: FusedModel, *, joint: bool = True, lr: float = 1e-3, steps: int = 1000, rise: int = 0) -> Engine:
    """An engine of one domain with the usual optimizer; the learning rate rises for `rise` steps."""
    stage = StageConfig(steps=steps, samples_per_domain=1, lr=lr, lr_warmup_steps=rise)
    return Engine([model], OptimizerConfig(), stage, domains=1, joint=joint)


def common_name(name: str) -> str:
    """A parameter's name on the torch backend: Transformer Engine's layers hold the norm in front of them."""
    return name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.").replace(
        "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."
    )


@torch.no_grad()
def copy_weights(source: FusedModel, target: FusedModel) -> None:
    """Gives a model the weights of another, whatever the backends and dtypes."""
    values = {common_name(name): value for name, value in source.named_parameters()}
    for name, parameter in target.named_parameters():
        parameter.copy_(values.pop(common_name(name)))
    if values:
        raise KeyError(f"parameters of one backend only: {sorted(values)}")


Sample = tuple[Sequence[int], Sequence[int]]
"""Ids of the prompt and of the response."""


def random_samples(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[Sample]:
    """Samples of those lengths; the second half of each is its response."""
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(1, vocabulary, length).tolist() for length in lengths]
    return [(ids[: len(ids) - len(ids) // 2], ids[len(ids) - len(ids) // 2 :]) for ids in drawn]


def row_of(machine: Machine, samples: Sequence[Sample], width: int, specialists: int = 3) -> PackedRow:
    """One packed row on the device."""
    store = TokenStore(specialists)
    for index, (prompt, response) in enumerate(samples):
        store.add(str(index), [[list(prompt)] for _ in range(specialists)], [list(response)])
    references = np.array([[0, index] for index in range(len(samples))])
    return build_row([store.freeze("made up", {})], references, width).to(machine.device)


def hidden_states(model: FusedModel, row: PackedRow) -> list[torch.Tensor]:
    """Per specialist, the states of the row's real positions, [used, h] float32."""
    with torch.no_grad():
        streams = model.streams(row)
    return [stream[: view.used, 0].float() for stream, view in zip(streams, row.specialists, strict=True)]


def gradients(engine: Engine, rows: Sequence[PackedRow]) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of the rows and its gradients, float32 copies by `common_name`."""
    sums = engine.compute_gradients(rows)  # by domain
    found = {common_name(name): p.main_grad.clone() for name, p in engine.model.named_parameters()}
    return float(sums[:, 0].sum() / sums[:, 1].sum()), found


def relative(ours: torch.Tensor, reference: torch.Tensor, floor: float = 0.0) -> float:
    """‖ours − reference‖ / ‖reference‖, the denominator at least `floor`; infinite where a number is not finite."""
    difference = torch.linalg.vector_norm(ours.detach().double() - reference.detach().double())
    found = float(difference / max(float(torch.linalg.vector_norm(reference.detach().double())), floor, 1e-30))
    return found if math.isfinite(found) else math.inf  # `max` would lose a NaN


def gradient_errors(ours: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Of all gradients as one vector, and of the worst parameter; those near zero count against a hundredth of all."""
    assert ours.keys() == reference.keys()
    squares = [float((ours[name].double() - value.double()).square().sum()) for name, value in reference.items()]
    whole = sum(float(value.double().square().sum()) for value in reference.values()) ** 0.5
    worst = max(relative(ours[name], value, floor=whole / 100) for name, value in reference.items())
    return {"gradients, all": sum(squares) ** 0.5 / whole, "gradients, worst parameter": worst}
