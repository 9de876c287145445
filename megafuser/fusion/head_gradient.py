"""Where the gradient of an output head goes: into megatron-core's `main_grad` where there is one.

The mixture loss knows dW in its forward, long before the backward that would carry it. Written straight into the
float32 buffer, it needs no memory of its own and is never rounded. Megatron-core's conventions for that are those of
its fused weight-gradient kernels (`LinearWithGradAccumulationAndAsyncCommunication`): the backward still returns a
gradient, so that DDP's hook fires, and `grad_added_to_main_grad` tells the hook not to add it.

The gradient itself is computed in `fusion.vocabulary_parallel`.
"""

import torch


class HeadGradient:
    """Accumulates dW of one head over the chunks of a micro-batch."""

    def __init__(self, head: torch.Tensor) -> None:
        """Accumulates into `head.main_grad`, or into memory of its own where there is none."""
        self._head = head
        self._in_place = hasattr(head, "main_grad")
        if self._in_place:
            self.total: torch.Tensor = head.main_grad  # type: ignore[attr-defined]
            assert self.total.dtype is torch.float32, "gradients of heads are accumulated in float32"
        else:
            self.total = torch.zeros(head.shape, dtype=torch.float32, device=head.device)

    def finish(self) -> torch.Tensor:
        """What the backward returns for the head."""
        head = self._head
        if not self._in_place:
            return self.total.to(head.dtype)
        head.grad_added_to_main_grad = True  # type: ignore[attr-defined]
        # A head that is its model's embedding too gets the embedding's gradient added to what is returned here, and
        # megatron-core's hook then adds both to main_grad: so nothing must stand in it.
        if getattr(head, "zero_out_wgrad", False):
            return torch.zeros_like(head)
        return torch.empty_like(head)
