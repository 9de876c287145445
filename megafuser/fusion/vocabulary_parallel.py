"""The mixture loss over heads that are split by vocabulary, for a chunk of tokens: K logits, the mixture, its gradient.

Each tensor-parallel rank holds some rows of every output head, the same ids in all. Only rows of shared ids take part:
they come first, so padded rows and those that only some specialists have are cut off rather than masked. The loop over
the chunks is in `fusion.mixture_loss`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

_CACHED_ROWS = 2048


@dataclass(frozen=True)
class SharedRows:
    """This rank's rows of the heads that stand for shared ids.

    Attributes:
        first: the id of the first row.
        count: number of rows R; 0 on a rank that holds only padding.
    """

    first: int
    count: int

    @classmethod
    def of_this_rank(cls, rows: int, shared_vocabulary: int) -> "SharedRows":
        """Of `rows` rows on each tensor-parallel rank, those of ids below `shared_vocabulary`."""
        first = rows * parallel_state.get_tensor_model_parallel_rank()
        return cls(first, min(max(shared_vocabulary - first, 0), rows))


class VocabularyChunk:
    """Buffers for C tokens at a time, used again for each chunk.

    Attributes:
        logits: [K, C, R] float32.
        mixed: [C, R] float32: the mixture's logits, then its probabilities, then the gradient p − onehot.
    """

    def __init__(self, rows: SharedRows, specialists: int, tokens: int, device: torch.device) -> None:
        """Takes memory for `tokens` tokens at most, `bytes_per_token` each."""
        self.rows = rows
        shape = (tokens, rows.count)
        self.logits = torch.empty(specialists, *shape, dtype=torch.float32, device=device)
        self.mixed = torch.empty(shape, dtype=torch.float32, device=device)
        self._scratch = torch.empty(shape, dtype=torch.float32, device=device)

    @staticmethod
    def bytes_per_token(rows: int, specialists: int, dtype: torch.dtype) -> int:
        """What a token takes at most: its K logits, their mixture and a scratch row, and copies in the heads' dtype.

        Args:
            rows: of a head on this rank, shared or not. All ranks must find the same number, since they reduce chunk
                by chunk, and some hold fewer shared rows than others.
            specialists: K.
            dtype: of the heads.
        """
        copies = 0 if dtype is torch.float32 else 2 * dtype.itemsize
        return rows * (4 * (specialists + 2) + copies)

    def fill(self, hidden: Sequence[torch.Tensor], heads: Sequence[torch.Tensor], weights: torch.Tensor) -> None:
        """Computes `logits` of hidden states [C, h_k] and head rows [R, h_k], and `mixed` by weights [C, K]."""
        for k, (states, head) in enumerate(zip(hidden, heads, strict=True)):
            _product(states, head.T, self.logits[k, : len(states)])
        self.mix(weights)

    def mix(self, weights: torch.Tensor) -> None:
        """Sets `mixed` to Σ_k w_k z_k."""
        tokens = len(weights)
        mixed = self.mixed[:tokens]
        torch.mul(self.logits[0, :tokens], weights[:, 0, None], out=mixed)
        for k in range(1, len(self.logits)):
            mixed.addcmul_(self.logits[k, :tokens], weights[:, k, None])

    def losses(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turns `mixed` into probabilities.

        Two reductions over tensor parallelism: the largest logits, then the sums and the targets' logits.

        Returns:
            The losses [K + 1, C] of the K specialists and the mixture; the mixture's confidence [C], the probability of
            its most probable token; whether that is correct, [C] bool, which is the target.
        """
        tokens = len(targets)
        every = [*self.logits[:, :tokens], self.mixed[:tokens]]
        largest = self._largest(every)
        local, own = self._local(targets)
        sums = torch.zeros(2, len(every), tokens, dtype=torch.float32, device=targets.device)
        if self.rows.count:
            for row, values in enumerate(every):
                sums[1, row] = values.gather(1, local[:, None])[:, 0].masked_fill_(~own, 0.0)
                # the mixture is not needed once more, its exponentials are
                exponentials = values if row == len(every) - 1 else self._scratch[:tokens]
                torch.sub(values, largest[row][:, None], out=exponentials).exp_()
                torch.sum(exponentials, dim=1, out=sums[0, row])
        sums = _sum_over_tensor_parallel(sums)
        self.mixed[:tokens].div_(sums[0, -1][:, None])
        # the largest logit is the target's own, to the bit, where the target is the most probable token
        correct = sums[1, -1] == largest[-1]
        return sums[0].log() + largest - sums[1], sums[0, -1].reciprocal(), correct

    def to_gradient(self, targets: torch.Tensor) -> torch.Tensor:
        """Turns the probabilities in `mixed` into the gradient of the summed losses, p − onehot, [C, R]."""
        gradient = self.mixed[: len(targets)]
        if self.rows.count:
            local, own = self._local(targets)
            gradient.scatter_add_(1, local[:, None], -own[:, None].float())
        return gradient

    def weight_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """dw [C, K] of the weights: ⟨dz, z_k⟩, summed over tensor parallelism."""
        tokens = len(gradient)
        # one product [K, R] · [R, 1] for each token: `linalg.vecdot` would write all R terms out first
        products = torch.bmm(self.logits[:, :tokens].transpose(0, 1), gradient[:, :, None])
        return _sum_over_tensor_parallel(products[..., 0])

    def _largest(self, every: Sequence[torch.Tensor]) -> torch.Tensor:
        """The largest logit of each token, over all ranks: [K + 1, C]."""
        if self.rows.count:
            largest = torch.stack([values.amax(dim=1) for values in every])
        else:
            largest = torch.full((len(every), len(every[0])), -torch.inf, device=every[0].device)
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() > 1:
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
        return largest

    def _local(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each target's row on this rank, and whether it is one."""
        local = targets - self.rows.first
        own = (local >= 0) & (local < self.rows.count)
        return local.masked_fill(~own, 0), own


def hidden_gradient(gradient: torch.Tensor, head: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The head's part of dh_k, w_k W_kᵀ dz, [C, h_k] float32, summed over tensor parallelism.

    Args:
        gradient: dz, [C, R], in the head's dtype.
        head: W_k, [R, h_k].
        weight: w_k, [C] float32.
    """
    product = torch.empty(len(gradient), head.shape[1], dtype=torch.float32, device=head.device)
    _product(gradient, head, product)
    return _sum_over_tensor_parallel(product.mul_(weight[:, None]))


def add_head_gradient(total: torch.Tensor, gradient: torch.Tensor, weighted: torch.Tensor) -> None:
    """total += dzᵀ (w_k h_k).

    Products of bfloat16 are accumulated in float32; a GPU also gives them so. PyTorch's CPU kernels round each chunk's
    part of dW to bfloat16, before it is added in float32.

    Args:
        total: dW_k, [R, h_k] float32.
        gradient: dz, [C, R], in the head's dtype.
        weighted: w_k h_k, [C, h_k], in the head's dtype.
    """
    if gradient.dtype is torch.float32:
        total.addmm_(gradient.T, weighted)
    elif gradient.is_cuda:
        total.add_(torch.mm(gradient.T, weighted, out_dtype=torch.float32))
    else:
        # rows by rows, so that the sum finds in the cache what the product left there
        for rows, part in zip(total.split(_CACHED_ROWS), gradient.split(_CACHED_ROWS, dim=1), strict=True):
            rows.add_(part.T @ weighted)


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """out = left · right in float32.

    Products of bfloat16 are accumulated in float32; a GPU also writes them so. PyTorch's CPU kernels round the result
    to bfloat16, as does every model that computes its logits in bfloat16.
    """
    if left.dtype is torch.float32:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        out.copy_(torch.mm(left, right, out_dtype=torch.float32))
    else:
        out.copy_(left @ right)


def _sum_over_tensor_parallel(tensor: torch.Tensor) -> torch.Tensor:
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        torch.distributed.all_reduce(tensor, group=group)
    return tensor
