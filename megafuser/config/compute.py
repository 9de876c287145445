"""The sections that say how to compute: layout, number formats, memory, optimizer, self-checks."""

import math
from dataclasses import dataclass
from typing import Literal

from megafuser.config.values import InvalidValue, Strict, at_least


@dataclass(frozen=True)
class ParallelConfig(Strict):
    """The layout; data parallel is the world size / (tensor · pipeline).

    Attributes:
        tensor: tensor-parallel size.
        pipeline: pipeline stages.
        sequence: sequence parallelism among the tensor-parallel ranks.
        virtual_pipeline: model chunks of each pipeline rank; above 1 the schedule is interleaved 1F1B.
        context: context-parallel size; only 1 is supported, since rows are packed with samples far shorter than a row.
        overlap_grad_reduce: reduce gradients over data parallelism while the backward goes on.
        overlap_param_gather: gather the distributed optimizer's parameters while the forward goes on.
    """

    tensor: int = 1
    pipeline: int = 1
    sequence: bool = False
    virtual_pipeline: int = 1
    context: int = 1
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False

    def __post_init__(self) -> None:
        """Refuses sizes below 1 and settings that need another one."""
        for key in ("tensor", "pipeline", "virtual_pipeline", "context"):
            at_least(key, getattr(self, key), 1)
        if self.context > 1:
            raise InvalidValue("context", f"context parallelism is not supported, so it must be 1, not {self.context}")
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise InvalidValue("virtual_pipeline", f"{self.virtual_pipeline} needs pipeline of at least 2; set it to 1")
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            raise InvalidValue("overlap_param_gather", "needs overlap_grad_reduce: true, or set it to false")


@dataclass(frozen=True)
class PrecisionConfig(Strict):
    """Number formats.

    Attributes:
        dtype: of weights and activations.
        fp8: recipe of the layers' matrix products, if any; gate and output heads stay outside FP8. Specialists that do
            not train compute `delayed` as `tensorwise`.
        fp8_first_last_bf16: leave the first and the last layer of each specialist in bf16.
    """

    dtype: Literal["fp32", "bf16"] = "bf16"
    fp8: Literal["delayed", "tensorwise", "blockwise"] | None = None
    fp8_first_last_bf16: bool = False

    def __post_init__(self) -> None:
        """Refuses FP8 beside fp32, and what an FP8 recipe cannot do."""
        if self.fp8 is not None and self.dtype == "fp32":
            raise InvalidValue("fp8", f"{self.fp8!r} needs dtype bf16, not fp32; set dtype to bf16 or fp8 to null")
        if self.fp8_first_last_bf16 and self.fp8 in (None, "delayed"):
            problem = f"needs fp8 tensorwise or blockwise, not {self.fp8 or 'null'}; set it to false or change fp8"
            raise InvalidValue("fp8_first_last_bf16", problem)


@dataclass(frozen=True)
class MemoryConfig(Strict):
    """What is kept in memory, and what is computed again.

    Attributes:
        recompute: activation recompute in the backward of joint training: `none`; `selective` (core attention alone);
            `full` (whole layers).
        recompute_layers: with `full`, layers between two kept activations.
        loss_chunk_mib: most memory that the mixture loss takes for the logits of a chunk of tokens, in MiB.
    """

    recompute: Literal["none", "selective", "full"] = "none"
    recompute_layers: int = 1
    loss_chunk_mib: int = 256

    def __post_init__(self) -> None:
        """Refuses sizes below 1."""
        at_least("recompute_layers", self.recompute_layers, 1)
        at_least("loss_chunk_mib", self.loss_chunk_mib, 1)


@dataclass(frozen=True)
class OptimizerConfig(Strict):
    """AdamW, for both stages.

    Attributes:
        distributed: states sharded over the data-parallel ranks.
        weight_decay: decoupled weight decay.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        clip_grad: largest global gradient norm; 0 clips nothing.
        gate_lr_multiplier: the gate's learning rate over the specialists'.
        precision_aware: keep the states in `moments_dtype`, inside a fused Adam (CUDA; needs `distributed`).
        moments_dtype: of the two moments where `precision_aware`.
        offload_fraction: share of the states that lives, and is updated, in host memory.
    """

    distributed: bool = True
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_grad: float = 1.0
    gate_lr_multiplier: float = 1.0
    precision_aware: bool = False
    moments_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    offload_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what Adam cannot work with."""
        at_least("weight_decay", self.weight_decay, 0.0)
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                raise InvalidValue(f"betas.{index}", f"must be at least 0 and below 1, not {beta}")
        if not (self.eps > 0.0 and math.isfinite(self.eps)):
            raise InvalidValue("eps", f"must be above 0, not {self.eps}")
        at_least("clip_grad", self.clip_grad, 0.0)
        at_least("gate_lr_multiplier", self.gate_lr_multiplier, 0.0)
        if self.precision_aware and not self.distributed:
            raise InvalidValue("precision_aware", "needs distributed: true, or set it to false")
        if self.moments_dtype != "fp32" and not self.precision_aware:
            raise InvalidValue("moments_dtype", f"{self.moments_dtype} needs precision_aware: true, or set it to fp32")
        if not 0.0 <= self.offload_fraction <= 1.0:
            raise InvalidValue("offload_fraction", f"must be from 0 to 1, not {self.offload_fraction}")
        if self.offload_fraction and not self.distributed:
            raise InvalidValue("offload_fraction", f"{self.offload_fraction} needs distributed: true, or set it to 0")
        if self.offload_fraction and self.moments_dtype != "fp32":
            problem = f"{self.moments_dtype} cannot be had beside offload_fraction; set it to fp32, or the other to 0"
            raise InvalidValue("moments_dtype", problem)


@dataclass(frozen=True)
class DebugConfig(Strict):
    """Checks of training itself, off by default.

    Attributes:
        gate_replicas: after every step, compare the gate's weights bit by bit over tensor and data parallelism.
    """

    gate_replicas: bool = False
