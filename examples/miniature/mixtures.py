"""A fused model in plain PyTorch, trained in both stages: logits mixed, or probabilities mixed.

    python -m examples.miniature.mixtures --out OUT --seed 1 --mix logits|probabilities --to FILE.json

Three Hugging Face models and one gate, dense tensors, a sample at a time; it shares only the choice of each step's
samples and the gate's first weights with `megafuser`. With logits it is an independent check of that.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

from examples.miniature.models import load_specialists
from examples.miniature.settings import Settings, part_file, read_settings
from examples.quickstart.samples import DOMAINS, EncodedSample, encode
from examples.quickstart.tokenizer import SHARED_VOCABULARY
from examples.shared.files import write_by_rename
from examples.shared.same_data import drawn


class Mixture(nn.Module):
    """K specialists and a gate over their last hidden states.

    Attributes:
        specialists: Hugging Face models.
        gate: a two-layer MLP that maps each hidden state to one score.
        mix: what the gate's weights weigh, `logits` or `probabilities`.
    """

    def __init__(self, specialists: Sequence[Any], gate: dict[str, torch.Tensor], mix: str):
        """`gate` has the weights `fc1.weight`, `fc1.bias`, `fc2.weight`, `fc2.bias`."""
        super().__init__()
        self.specialists = nn.ModuleList(specialists)
        units, hidden = gate["fc1.weight"].shape
        self.gate = nn.Sequential(nn.Linear(hidden, units), nn.ReLU(), nn.Linear(units, 1))
        names = {"0.weight": "fc1.weight", "0.bias": "fc1.bias", "2.weight": "fc2.weight", "2.bias": "fc2.bias"}
        self.gate.load_state_dict({name: gate[there] for name, there in names.items()})
        self.mix = mix

    def losses(self, views: Sequence[EncodedSample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy [T] of a sample's response tokens and the gate's weights [T, K], from its K views."""
        hidden, logits = [], []
        for specialist, (ids, prompt) in zip(self.specialists, views, strict=True):
            model = cast(LlamaForCausalLM, specialist)
            states = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, prompt - 1 : -1]
            hidden.append(states)
            logits.append(model.lm_head(states)[:, :SHARED_VOCABULARY])
        targets = torch.tensor(views[0][0][views[0][1] :])
        weights = torch.cat([self.gate(states) for states in hidden], dim=1).softmax(1)
        stacked = torch.stack(logits, dim=1)
        if self.mix == "logits":
            mixed = (weights[:, :, None] * stacked).sum(1).log_softmax(-1)
        else:
            # log Σ w_k p_k
            mixed = (weights.log()[:, :, None] + stacked.log_softmax(-1)).logsumexp(1)
        return -mixed[torch.arange(len(targets)), targets], weights


def main() -> None:
    """Trains both stages and writes dev curve and test losses by rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--mix", choices=("logits", "probabilities"), required=True)
    parser.add_argument("--to", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    settings = read_settings(args.out / "settings.json")
    own = args.out / f"seed{args.seed}"
    specialists, tokenizers = load_specialists(own / "specialists")
    model = Mixture(specialists, load_file(own / "untrained" / "gate.safetensors"), args.mix)
    train = [views(args.out, domain, "fusion", tokenizers) for domain in DOMAINS]
    steps = []
    for stage in ("warmup", "joint"):
        steps += train_stage(model, train, settings, args.seed, stage)
    test = {domain: evaluated(model, views(args.out, domain, "test", tokenizers)) for domain in DOMAINS}
    write_by_rename(args.to, json.dumps({"test": test, "steps": steps}) + "\n")


def views(out: Path, domain: str, part: str, tokenizers: Sequence[Any]) -> list[tuple[EncodedSample, ...]]:
    """For each sample of a part its K views."""
    file = part_file(out, domain, part)
    return list(zip(*(encode(file, name, own) for name, own in zip(DOMAINS, tokenizers, strict=True)), strict=True))


def train_stage(
    model: Mixture, train: Sequence[Sequence[Any]], settings: Settings, seed: int, stage: str
) -> list[dict[str, Any]]:
    """Trains the gate (warm-up) or everything (joint); returns the loss of each step."""
    warmup = stage == "warmup"
    for parameter in model.specialists.parameters():
        parameter.requires_grad_(not warmup)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    highest = settings.warmup_rate if warmup else settings.joint_rate
    optimizer = torch.optim.AdamW(parameters, lr=highest, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    steps = list(drawn(settings, seed, [len(own) for own in train], (stage,)))
    lines = []
    for index, pairs in enumerate(steps):
        optimizer.param_groups[0]["lr"] = highest * (0.5 + 0.5 * math.cos(math.pi * index / len(steps)))
        samples = [train[domain][sample] for domain, sample in pairs]
        count = sum(len(own[0][0]) - own[0][1] for own in samples)
        total = 0.0
        for sample in samples:
            losses, _ = model.losses(sample)
            (losses.sum() / count).backward()
            total += losses.sum().item()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        lines.append({"stage": stage, "step": index + 1, "loss": total / count})
        if (index + 1) % 10 == 0:
            print(lines[-1], flush=True)
    return lines


@torch.inference_mode()
def evaluated(model: Mixture, samples: Sequence[Sequence[EncodedSample]]) -> dict[str, list[Any]]:
    """For each sample the sum of its cross-entropy and its response tokens; the gate's mean weights over all tokens."""
    sums, tokens = [], []
    gate = torch.zeros(len(model.specialists))
    for sample in samples:
        losses, weights = model.losses(sample)
        sums.append(losses.double().sum().item())
        tokens.append(len(losses))
        gate += weights.sum(0)
    return {"sums": sums, "tokens": tokens, "gate": (gate / sum(tokens)).tolist()}


if __name__ == "__main__":
    main()
