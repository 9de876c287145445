"""The section `optimizer`: AdamW's settings; rates of single parts are `parameter_groups`.

The optimizer itself is set up in `training.optimizer`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from megafuser.config.values import InvalidValue, Strict, at_least


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
