"""The word embedding, whose gradient goes straight into megatron-core's `main_grad`.

Autograd's gradient of an embedding is as large as the embedding, zeros but for the rows of a micro-batch's ids, and
megatron-core's hook adds all of it to the float32 buffer. Here just those rows are added, in float32. With fusion that
is K vocabularies a micro-batch that are neither cleared nor read. The conventions are those of megatron-core's fused
weight-gradient kernels: see `fusion/head_gradient.py`.

The output heads are applied in `fusion.mixture_loss` and `inference.predict`.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import layers


class Embedding(layers.VocabParallelEmbedding):
    """megatron-core's, with another lookup."""

    @classmethod
    def take_over(cls, embedding: layers.VocabParallelEmbedding) -> None:
        """Makes one of an embedding that megatron-core has built, whose weight, marks and checkpoint keys stay.

        `GPTModel` leaves no choice of the class, and building it again would draw its weights again.
        """
        embedding.__class__ = cls

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """As megatron-core's; ids [B, S] to [B, S, h], or [S / TP, B, h] under sequence parallelism."""
        local, elsewhere = input_, None
        if self.tp_group.size() > 1:
            elsewhere = (input_ < self.vocab_start_index) | (input_ >= self.vocab_end_index)
            # ids of other ranks fall on any rows, which get zeros: on one row they would queue up in the backward
            local = (input_ - self.vocab_start_index).remainder(self.num_embeddings_per_partition)
        found = _Lookup.apply(self.weight, local)
        if elsewhere is not None:
            found = found.masked_fill(elsewhere[..., None], 0.0)
        if self.reduce_scatter_embeddings:
            along_sequence = found.transpose(0, 1).contiguous()
            own: torch.Tensor = layers.reduce_scatter_to_sequence_parallel_region(along_sequence, group=self.tp_group)
            return own
        whole: torch.Tensor = layers.reduce_from_tensor_model_parallel_region(found, group=self.tp_group)
        return whole


class _Lookup(torch.autograd.Function):
    """weight[ids]."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Of weight [V, h] and ids of any shape; [..., h]."""
        ctx.weight = weight
        ctx.save_for_backward(ids)
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        """Adds the rows; what is returned lets DDP's hook fire, and is not added where `main_grad` has it."""
        weight, (ids,) = ctx.weight, ctx.saved_tensors
        if not hasattr(weight, "main_grad"):
            return torch.ops.aten.embedding_dense_backward(gradient, ids, len(weight), -1, False), None
        rows, into = gradient.flatten(0, -2).to(weight.main_grad.dtype), weight.main_grad
        if into.is_cuda:  # sorted by id, hence the same bits each time; `index_add_` is atomic there
            into.index_put_((ids.flatten(),), rows, accumulate=True)
        else:  # one after the other, hence the same bits each time; `index_put_` is atomic there
            into.index_add_(0, ids.flatten(), rows)
        weight.grad_added_to_main_grad = True
        # Where the weight is the output head too, the head's zeros fire the hook, which adds what it gets.
        return None if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight), None
