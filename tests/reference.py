"""The method again, independently: Hugging Face models, one sample at a time, dense logits, PyTorch autograd.

Nothing of megafuser is used here. Prompts are written out by hand, ids come from the tokenizers directly.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = {
    "text": "User: {instruction}\nAssistant:",
    "code": "[INST] {instruction} [/INST]",
    "math": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{instruction}\n\n### Response:"
    ),
}


class DenseFusion:
    """K Hugging Face models in float64 and a gate given as four tensors."""

    def __init__(self, directories: Mapping[str, Path], gate: Mapping[str, torch.Tensor], shared: int) -> None:
        self.names = list(directories)
        self.models = {
            name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
            for name, path in directories.items()
        }
        self.tokenizers = {name: AutoTokenizer.from_pretrained(path) for name, path in directories.items()}
        self.gate = {name: value.detach().double().clone().requires_grad_() for name, value in gate.items()}
        self.shared = shared

    def sample(self, sample: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Per response token of one sample: the losses of the fused model, the specialists and the uniform mixture, the
        gate's weights, the fused model's largest probability and whether it is the target's.
        """
        first = self.tokenizers[self.names[0]]
        response = [*first(sample["response"], add_special_tokens=False).input_ids, first.eos_token_id]
        hidden, logits = [], []
        for name in self.names:
            prompt = self.tokenizers[name](PROMPTS[name].format(instruction=sample["instruction"])).input_ids
            model = self.models[name]
            states = model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
            states = states[len(prompt) - 1 : len(prompt) + len(response) - 1]
            hidden.append(states)
            logits.append(model.lm_head(states)[:, : self.shared])
        scores = [
            torch.relu(h @ self.gate["fc1.weight"].T + self.gate["fc1.bias"]) @ self.gate["fc2.weight"].T
            + self.gate["fc2.bias"]
            for h in hidden
        ]
        weights = torch.softmax(torch.cat(scores, dim=1), dim=1)
        mixed = sum(weights[:, k, None] * z for k, z in enumerate(logits))
        targets = torch.tensor(response)

        def loss(z: torch.Tensor) -> torch.Tensor:
            return -torch.log_softmax(z, dim=-1)[torch.arange(len(response)), targets]

        return {
            "fused": loss(mixed),
            "weights": weights,
            "specialists": torch.stack([loss(z) for z in logits], dim=1),
            "uniform": loss(sum(logits) / len(logits)),
            "confidence": torch.softmax(mixed, dim=-1).max(dim=-1).values,
            "correct": mixed.argmax(dim=-1) == targets,
        }

    def batch_gradients(
        self, samples: Sequence[Mapping[str, str]], load_balance: float = 0.0
    ) -> tuple[float, dict[str, Any]]:
        """Mean loss over all response tokens of the samples; gradients by `gate.…` and `NAME.HF_KEY`.

        With `load_balance`, they are those of the loss and so many times K · Σ_k (mean weight of k)².
        """
        values = [self.sample(sample) for sample in samples]
        mean = torch.cat([value["fused"] for value in values]).mean()
        weights = torch.cat([value["weights"] for value in values]).mean(dim=0)
        (mean + load_balance * len(weights) * (weights**2).sum()).backward()
        gradients = {f"gate.{name}": value.grad for name, value in self.gate.items()}
        for name, model in self.models.items():
            gradients |= {f"{name}.{key}": value.grad for key, value in model.named_parameters()}
        return float(mean), gradients


def relative_difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, relative to the largest magnitude of the reference."""
    scale = reference.abs().max().clamp(min=1e-12)
    return float((ours.double() - reference.double()).abs().max() / scale)
