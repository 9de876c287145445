"""The gradients that docs/how-it-works.md writes down are autograd's."""

import torch

T, V = 5, 11
WIDTHS = (4, 6, 3)
TEMPERATURE = 1.7


def test_the_gradients_of_the_mixture_loss() -> None:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    hidden, heads, scores = [drawn(T, h) for h in WIDTHS], [drawn(V, h) for h in WIDTHS], drawn(T, len(WIDTHS))
    targets = torch.randint(V, (T,), generator=generator)
    weights = torch.softmax(scores / TEMPERATURE, dim=-1)
    weights.retain_grad()
    logits = [h @ head.T for h, head in zip(hidden, heads, strict=True)]
    for z in logits:
        z.retain_grad()
    mixed = sum((weights[:, k, None] * z for k, z in enumerate(logits)), torch.zeros(T, V, dtype=torch.float64))
    torch.nn.functional.cross_entropy(mixed, targets, reduction="sum").backward()

    with torch.no_grad():
        do = torch.softmax(mixed, dim=-1) - torch.nn.functional.one_hot(targets, V)
        dw = torch.stack([(do * z).sum(dim=-1) for z in logits], dim=-1)
        ds = weights * (dw - (weights * dw).sum(dim=-1, keepdim=True)) / TEMPERATURE
        torch.testing.assert_close(weights.grad, dw)
        torch.testing.assert_close(scores.grad, ds)
        for k, (h, head, z) in enumerate(zip(hidden, heads, logits, strict=True)):
            w = weights[:, k, None]
            torch.testing.assert_close(z.grad, w * do)
            torch.testing.assert_close(h.grad, w * (do @ head))
            torch.testing.assert_close(head.grad, do.T @ (w * h))
