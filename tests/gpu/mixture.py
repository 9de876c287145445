"""The mixture loss and its gradients against the dense formula in float64 with autograd, on the device."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from megafuser.fusion.mixture_loss import mixture_cross_entropy
from megafuser.specialist.transformer_config import DTYPES
from tests.gpu.models import Machine, relative
from tests.gpu.report import Finding

HIDDEN = (1024, 768, 512)
# bf16: a GPU writes its products in float32, so that only the gradients are rounded; PyTorch's CPU products round
# logits too.
LIMITS = {
    ("cuda", "fp32"): {"losses": 1e-5, "gradients": 1e-5},
    ("cpu", "fp32"): {"losses": 1e-5, "gradients": 1e-5},
    ("cuda", "bf16"): {"losses": 1e-4, "gradients": 1e-2},
    ("cpu", "bf16"): {"losses": 2e-2, "gradients": 2e-2},
}


def measure(machine: Machine, dtype: str, chunks: int) -> Finding:
    """Relative errors of the losses, and of the worst gradient of hidden states, heads and weights.

    Args:
        machine: where.
        dtype: of hidden states and heads.
        chunks: about how many chunks the tokens shall take.
    """
    tokens, rows, shared = (40, 256, 201) if machine.tiny else (700, 32128, 32001)
    sizes = [size // 32 for size in HIDDEN] if machine.tiny else list(HIDDEN)
    generator = torch.Generator(machine.device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=machine.device) * scale

    hidden = [normal(tokens, size).to(DTYPES[dtype]).requires_grad_() for size in sizes]
    heads = [normal(rows, size, scale=2 * size**-0.5).to(DTYPES[dtype]).requires_grad_() for size in sizes]
    weights = torch.softmax(normal(tokens, len(sizes)), dim=1)
    weights[0], weights[1] = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, 0.0, 0.5])
    weights.requires_grad_()
    targets = torch.randint(0, shared, (tokens,), generator=generator, device=machine.device)
    targets[0], targets[1] = 0, shared - 1
    leaves = [*hidden, *heads, weights]
    copies = [leaf.detach().double().requires_grad_() for leaf in leaves]
    each_token = rows * (4 * (len(sizes) + 2) + (0 if dtype == "fp32" else 4))
    found = mixture_cross_entropy(
        hidden, heads, weights, targets, shared_vocabulary=shared, chunk_bytes=each_token * (tokens // chunks + 1)
    )
    found.fused.sum().backward()
    fused, specialists = _dense(copies[:3], copies[3:6], copies[6], targets, shared)
    fused.sum().backward()
    numbers = {
        "losses": max(relative(found.fused, fused), relative(found.specialists, specialists)),
        "gradients": max(relative(ours.grad, own.grad) for ours, own in zip(leaves, copies, strict=True)),  # type: ignore
    }
    return Finding(numbers, LIMITS[machine.device.type, dtype])


def _dense(
    hidden: list[torch.Tensor], heads: list[torch.Tensor], weights: torch.Tensor, targets: torch.Tensor, shared: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the mixture [T] and of the specialists [T, K]."""
    logits = [(states @ head.T)[:, :shared] for states, head in zip(hidden, heads, strict=True)]
    mixed = torch.stack([weights[:, k, None] * own for k, own in enumerate(logits)]).sum(dim=0)
    every = [torch.nn.functional.cross_entropy(own, targets, reduction="none") for own in (mixed, *logits)]
    return every[0], torch.stack(every[1:], dim=1).detach()


def checks(machine: Machine) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Both dtypes, in one chunk and in several."""
    for dtype in ("fp32", "bf16"):
        for chunks in (1, 5):
            name = f"{dtype}, {chunks} chunk{'s' * (chunks > 1)}"
            yield name, partial(measure, machine, dtype, chunks)
