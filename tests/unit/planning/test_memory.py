"""Bytes of optimizers that no CPU can run: precision-aware and offloaded; the others are measured in tests/parallel."""

import pytest

from megafuser.config.compute import PrecisionConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.planning.memory import Sharing, StateBytes, state_bytes
from megafuser.planning.parameters import Parameter

N = 12800
BF16 = PrecisionConfig()
CHUNK = [Parameter("weight", (N,)), Parameter("gate.fc1.weight", (128,), is_gate=True)]
ALONE = Sharing(distributed=True, data_parallel=1, data_rank=0, overlapped=False, pipeline_rank=0)


def states(precision: PrecisionConfig = BF16, *, joint: bool = True, **settings: object) -> StateBytes:
    return state_bytes(
        [CHUNK],
        joint=joint,
        precision=precision,
        settings=OptimizerConfig(**settings),  # type: ignore[arg-type]
        sharing=ALONE,
        fused_adam=True,
    )


def test_mixed_precision_takes_eighteen_bytes_a_parameter() -> None:
    found = states()
    held = (found.weights, found.gradients, found.masters, found.moments)
    assert held == tuple(size * (N + 128) for size in (2, 4, 4, 8))
    assert found.optimizer == 12 * (N + 128) and found.host == 0


def test_float32_has_no_masters() -> None:
    found = states(PrecisionConfig(dtype="fp32"))
    assert (found.weights, found.masters, found.moments) == (4 * (N + 128), 0, 8 * (N + 128))


def test_a_precision_aware_optimizer_keeps_masters_of_float32_too() -> None:
    assert states(PrecisionConfig(dtype="fp32"), precision_aware=True).masters == 4 * (N + 128)


@pytest.mark.parametrize("settings", [{"offload_fraction": 1.0}, {"precision_aware": True}])
def test_the_gates_states_are_neither_moved_nor_shrunk(settings: dict[str, object]) -> None:
    assert states(joint=False, **settings) == states(joint=False)


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2), ("fp8", 1)])
def test_moments_of_a_precision_aware_optimizer(dtype: str, size: int) -> None:
    found = states(precision_aware=True, moments_dtype=dtype)
    assert found.moments == 2 * size * (N + 128)
    assert found.masters == 2 * (N + 128), "a bf16 weight is half of its master"
    blockwise = states(PrecisionConfig(fp8="blockwise"), precision_aware=True, moments_dtype=dtype)
    assert blockwise.masters == 4 * (N + 128)


def test_offloaded_states_are_in_host_memory() -> None:
    half = states(offload_fraction=0.5)
    assert (half.masters, half.moments, half.host_moments) == tuple(size * (N + 128) for size in (2, 4, 4))
    # masters, moments, and gradients as large as the masters
    assert half.host == (2 + 4 + 2) * (N + 128)
    assert states(offload_fraction=1.0).optimizer == 0


def test_the_warm_up_trains_the_gate_alone() -> None:
    found = states(joint=False)
    assert (found.parameters, found.trainable) == (N + 128, 128)
    assert (found.weights, found.gradients, found.optimizer) == (2 * (N + 128), 4 * 128, 12 * 128)


def test_chunks_of_a_rank_add_up() -> None:
    one = states()
    both = state_bytes(
        [CHUNK, CHUNK],
        joint=True,
        precision=PrecisionConfig(),
        settings=OptimizerConfig(),
        sharing=ALONE,
        fused_adam=True,
    )
    assert both == one + one
