"""A small fusion to decode with, and what it must say by Hugging Face's own forward passes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from megafuser.checkpoint.loading import load_specialist_weights
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.config.gate import GateConfig
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.data.tokenization import load_tokenizers
from megafuser.fusion.model import FusedModel, build_fused_model
from megafuser.inference.engine import Engine
from megafuser.inference.prompts import Ids, PromptEncoder
from megafuser.inference.step_messages import Ask
from tests.fused_case import SPECIALISTS, make_hf_specialists
from tests.reference import DenseFusion
from tests.tiny_models import SHARED_VOCABULARY

END = 2
LIMIT = 256


def converted_specialists(temporary: pytest.TempPathFactory) -> Path:
    """Three specialists, Hugging Face's and converted, made once for all directories of tests: they are only read."""
    directory = temporary.getbasetemp() / "converted_specialists"
    if not directory.exists():
        for name, hf in make_hf_specialists(directory).items():
            import_specialist(hf, directory / "mcore" / name, verify="none")
    return directory


def build(root: Path, parallel: ParallelConfig | None = None) -> FusedModel:
    """The fused model with loaded specialists and a gate away from its uniform start."""
    directories = {name: root / "mcore" / name for name in SPECIALISTS}
    model = build_fused_model(
        {name: read_specialist(directory)[1] for name, directory in directories.items()},
        parallel=parallel or ParallelConfig(),
        precision=PrecisionConfig(dtype="fp32"),
        backend="torch",
        gate=GateConfig(16),
        shared_vocabulary=SHARED_VOCABULARY,
        seed=3,
        cached=True,
    )
    for specialist, directory in zip(model.specialists, directories.values(), strict=True):
        load_specialist_weights([specialist], directory)
    if model.gate is not None:
        with torch.no_grad():
            model.gate.fc2.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(5))
            model.gate.fc1.bias.normal_(0, 0.5, generator=torch.Generator().manual_seed(6))
    return model


def make_engine(
    model: FusedModel, cache_bytes: int = 8 << 20, forced: Sequence[float] | None = None, limit: int = LIMIT
) -> Engine:
    """An engine on the CPU."""
    return Engine(model, limit=limit, cache_bytes=cache_bytes, device=torch.device("cpu"), forced=forced)


def make_prompts(root: Path) -> PromptEncoder:
    """What makes ids with the specialists' own templates."""
    tokenizers = load_tokenizers({name: root / "hf" / name for name in SPECIALISTS})
    return PromptEncoder(
        tokenizers,
        [settings["template"] for settings in SPECIALISTS.values()],
        shared_vocabulary=SHARED_VOCABULARY,
        end_id=END,
        rows=[len(tokenizer) for tokenizer in tokenizers.values()],
    )


class Dense:
    """Hugging Face's models in float64, without caches: logits and weights of every position."""

    def __init__(self, root: Path, model: FusedModel) -> None:
        assert model.gate is not None
        hf = {name: root / "hf" / name for name in SPECIALISTS}
        self._fusion = DenseFusion(hf, dict(model.gate.state_dict()), SHARED_VOCABULARY)

    @torch.no_grad()
    def logits(self, ids: Sequence[Sequence[int]], last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed logits [last, V] and weights [last, K] of the last positions of K views."""
        fusion = self._fusion
        hidden, logits = [], []
        for name, own in zip(fusion.names, ids, strict=True):
            model = fusion.models[name]
            states = model.model(input_ids=torch.tensor([list(own)])).last_hidden_state[0, -last:]
            hidden.append(states)
            logits.append(model.lm_head(states)[:, :SHARED_VOCABULARY])
        gate = fusion.gate
        scores = [
            torch.relu(h @ gate["fc1.weight"].T + gate["fc1.bias"]) @ gate["fc2.weight"].T + gate["fc2.bias"]
            for h in hidden
        ]
        weights = torch.softmax(torch.cat(scores, dim=1), dim=1)
        return sum(weights[:, k, None] * z for k, z in enumerate(logits)), weights

    def greedy(self, prompts: Ids, count: int) -> list[int]:
        """The response of at most `count` tokens."""
        response: list[int] = []
        while len(response) < count and response[-1:] != [END]:
            logits, _ = self.logits([[*prompt, *response] for prompt in prompts], 1)
            response.append(int(logits[0].argmax()))
        return response


def ask_for_logits(start: int, past: Sequence[int], ids: Sequence[Sequence[int]], targets: Sequence[int]) -> Ask:
    """Scores targets and wants all logits."""
    return Ask(start, tuple(past), tuple(map(tuple, ids)), tuple(targets), with_logits=True)
