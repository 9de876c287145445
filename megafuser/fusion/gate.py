"""The gate: one two-layer MLP, shared by all specialists, from a last hidden state to one scalar (paper, Eq. 1).

The logits are mixed by its weights in `fusion.vocabulary_parallel`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from megafuser.config.gate import GateConfig


class Gate(nn.Module):
    """g(h) = fc2(relu(fc1(h))), and w = softmax over the specialists of [g(h_1), …, g(h_K)] / temperature.

    Where hidden sizes differ, a linear projection per specialist stands in front of the shared MLP. Parameters are
    replicated over tensor parallelism and carry none of megatron-core's marks, so that it counts them once in norms
    and never reduces them over the tensor-parallel group: every rank computes their whole gradient.

    fc2's bias shifts all K scores alike, which the softmax does not see: its gradient is zero but for rounding. Adam
    divides that by its own size, so the bias drifts by up to a learning rate a step, and differently in each layout,
    while w, to rounding, is that of a bias of zero. It belongs to the paper's MLP and to the checkpoints' format.
    """

    def __init__(self, hidden_sizes: Sequence[int], gate: GateConfig, *, seed: int, dtype: torch.dtype) -> None:
        """Initializes equally on every rank: fc1 and the projections at random, fc2 at zero (a uniform mixture).

        Args:
            hidden_sizes: h of each specialist, in order.
            gate: width of the MLP, temperature of the softmax over the specialists, and whether fc2's weights are drawn
                too.
            seed: of the random values.
            dtype: of the parameters; the arithmetic is in float32.
        """
        super().__init__()
        self.temperature = gate.temperature
        width = max(hidden_sizes)
        unequal = len(set(hidden_sizes)) > 1
        self.fc1 = nn.Linear(width, gate.hidden_size)
        self.fc2 = nn.Linear(gate.hidden_size, 1)
        projections = [nn.Linear(h, width, bias=False) for h in hidden_sizes] if unequal else []
        self.project = nn.ModuleList(projections)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            # fc2 last, so that the others are the same whether it is drawn or not
            for linear in [self.fc1, *projections, *([self.fc2] if gate.init == "random" else [])]:
                linear.weight.normal_(0.0, linear.in_features**-0.5, generator=generator)
            for zero in (self.fc1.bias, self.fc2.bias, *([self.fc2.weight] if gate.init == "zero" else [])):
                zero.zero_()
        self.to(dtype)

    def forward(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """Weighs the specialists.

        Args:
            hidden: per specialist, [T, h_k], any dtype.

        Returns:
            [T, K] float32, rows sum to one.
        """
        scores = torch.stack([self.score(k, h) for k, h in enumerate(hidden)], dim=-1)
        return torch.softmax(scores / self.temperature, dim=-1)

    def score(self, specialist: int, hidden: torch.Tensor) -> torch.Tensor:
        """g(h_k), [T] float32, of the specialist's hidden states [T, h_k]."""
        hidden = hidden.float()
        if len(self.project):
            hidden = nn.functional.linear(hidden, self.project[specialist].weight.float())  # type: ignore[arg-type]
        inner = torch.relu(nn.functional.linear(hidden, self.fc1.weight.float(), self.fc1.bias.float()))
        return nn.functional.linear(inner, self.fc2.weight.float(), self.fc2.bias.float()).squeeze(-1)
