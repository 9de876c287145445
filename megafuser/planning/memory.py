"""Bytes that a rank holds all the time: weights, gradients, optimizer states; and what of them lies in host memory.

What a forward leaves is `planning.activations`; the sum of all is `planning.plan`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from megafuser.config.compute import PrecisionConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.planning.buffers import Buffer, bucket_size, lay_out
from megafuser.planning.parameters import Parameter

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
_MAIN = 4
_REMAINDER = 2
_STEP = 4
"""PyTorch's fused Adam counts the steps of each tensor in a float32 tensor of its own, beside it on the device."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one rank.

    Attributes:
        parameters: elements that the rank holds, as a number, without padding.
        trainable: of them, those that the stage trains.
        weights: in the compute dtype, the padding of buckets included.
        gradients: in float32, the padding of buckets included.
        masters: float32 copies of bf16 weights.
        moments: both of Adam's.
        steps: Adam's step counts.
        host_masters: masters in host memory where states are offloaded; there are then gradients beside them.
        host_moments: moments in host memory where states are offloaded.
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    masters: int
    moments: int
    steps: int
    host_masters: int = 0
    host_moments: int = 0

    @property
    def optimizer(self) -> int:
        """Masters, moments and step counts on the device."""
        return self.masters + self.moments + self.steps

    @property
    def host(self) -> int:
        """All in host memory: masters, moments, and gradients as large as the masters."""
        return 2 * self.host_masters + self.host_moments

    def __add__(self, other: "StateBytes") -> "StateBytes":
        """Both together, as the chunks of a rank are."""
        names = [field.name for field in dataclasses.fields(self)]
        return StateBytes(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True)
class Sharing:
    """Whose optimizer states a rank holds.

    Attributes:
        distributed: whether states are spread over data parallelism.
        data_parallel: number of data-parallel ranks.
        data_rank: this rank among them.
        overlapped: whether gradients are reduced while the backward goes on, in several buckets.
        pipeline_rank: this rank's pipeline stage.
    """

    distributed: bool
    data_parallel: int
    data_rank: int
    overlapped: bool
    pipeline_rank: int


def state_bytes(
    chunks: Sequence[Sequence[Parameter]],
    *,
    joint: bool,
    precision: PrecisionConfig,
    settings: OptimizerConfig,
    sharing: Sharing,
    fused_adam: bool,
    frozen: tuple[str, ...] = (),
) -> StateBytes:
    """What one rank holds.

    Args:
        chunks: the parameters of each of its chunks.
        joint: whether everything is trained, or the gate alone.
        precision: number formats.
        settings: the optimizer's.
        sharing: the rank's part of the states. Those of the gate alone are never spread.
        fused_adam: whether Adam is Transformer Engine's or Apex's, which count steps once.
        frozen: what the names of those specialists' parameters begin with that joint training leaves as they are.
    """
    total = StateBytes(0, 0, 0, 0, 0, 0, 0)
    for stage, parameters in enumerate(chunks):
        trained = [one for one in parameters if one.is_gate or (joint and not one.name.startswith(frozen))]
        # every chunk has a part of every specialist
        distributed = sharing.distributed and any(not one.is_gate for one in trained)
        buffer = lay_out(
            trained,
            distributed=distributed,
            data_parallel=sharing.data_parallel,
            bucket_size=bucket_size(
                overlapped=sharing.overlapped,
                data_parallel=sharing.data_parallel,
                pipeline_rank=sharing.pipeline_rank,
                virtual_stage=stage,
            ),
        )
        sizes = [parameter.size for parameter in trained]
        owned = buffer.owned(sharing.data_rank, sharing.data_parallel) if distributed else sizes
        held = sum(parameter.size for parameter in parameters)
        # what is not spread has megatron-core's plain optimizer, which neither offloads nor shrinks states
        own = _optimizer_bytes(owned, precision, settings if distributed else OptimizerConfig(), fused_adam)
        total += dataclasses.replace(
            own,
            parameters=held,
            trainable=sum(sizes),
            weights=(held + _padding(buffer, sizes, distributed)) * ELEMENT_BYTES[precision.dtype],
            gradients=buffer.size * _MAIN,
        )
    return total


def _padding(buffer: Buffer, sizes: Sequence[int], distributed: bool) -> int:
    """Elements of the buffer of weights beyond the weights; only a distributed optimizer has such a buffer."""
    return buffer.size - sum(sizes) if distributed else 0


def _optimizer_bytes(
    owned: Sequence[int], precision: PrecisionConfig, settings: OptimizerConfig, fused_adam: bool
) -> StateBytes:
    elements = sum(owned)
    away = round(elements * settings.offload_fraction)
    stays = elements - away
    # Beside offloaded states, megatron-core keeps the others in float32 too.
    fused = settings.precision_aware and away == 0
    moment = ELEMENT_BYTES[settings.moments_dtype] if fused else _MAIN
    # Transformer Engine's Adam keeps only those 16 bits of a master that its bf16 weight lacks; where FP8 scaling needs
    # the whole, megatron-core does.
    master = _REMAINDER if fused and precision.fp8 in (None, "delayed") else _MAIN
    if precision.dtype == "fp32":
        # Its weights are masters themselves; Transformer Engine's Adam, which is for low precision, keeps others.
        master = _MAIN if fused else 0
    return StateBytes(
        parameters=0,
        trainable=0,
        weights=0,
        gradients=0,
        masters=master * stays,
        moments=2 * moment * stays,
        steps=0 if fused_adam else _STEP * len(owned),
        host_masters=_MAIN * away,
        host_moments=2 * _MAIN * away,
    )
