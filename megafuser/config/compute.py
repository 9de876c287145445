"""The sections that say how to compute: layout, number formats, memory, self-checks.

Whether the specialists can be split so is found by `specialist.layout_checks`.
"""

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
class DebugConfig(Strict):
    """Checks of training itself, off by default.

    Attributes:
        gate_replicas: after every step, compare the gate's weights bit by bit over tensor and data parallelism.
    """

    gate_replicas: bool = False
