"""RMSNorm against its formula, and the mark that megatron-core's finalization reads."""

import dataclasses

import torch

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.specialist.norm import RMSNorm
from megafuser.specialist.transformer_config import transformer_config
from tests.unit.specialist.small_card import CARD


def norm(parallel: ParallelConfig) -> RMSNorm:
    config = transformer_config(CARD, parallel=parallel, precision=PrecisionConfig(dtype="fp32"), backend="torch")
    return RMSNorm(config, hidden_size=48, eps=1e-2)


def test_formula() -> None:
    layer = norm(ParallelConfig())
    generator = torch.Generator().manual_seed(0)
    layer.weight.data = torch.randn(48, generator=generator)
    x = torch.randn(7, 1, 48, generator=generator)
    expected = x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + 1e-2) * layer.weight
    torch.testing.assert_close(layer(x), expected)


def test_partial_gradients_are_marked_under_sequence_parallelism_only() -> None:
    whole, parts = ParallelConfig(tensor=2), ParallelConfig(tensor=2, sequence=True)
    assert not norm(ParallelConfig()).weight.sequence_parallel
    assert not norm(whole).weight.sequence_parallel
    assert norm(parts).weight.sequence_parallel
    assert not norm(dataclasses.replace(parts, tensor=1)).weight.sequence_parallel
