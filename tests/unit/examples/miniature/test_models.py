"""The miniature's single models, its evaluator and its dense mixture, against plain formulas."""

import copy
import dataclasses
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.miniature import train, until_flat
from examples.miniature.evaluate_model import mean_loss, sample_losses
from examples.miniature.mixtures import Mixture
from examples.miniature.models import btx_model, gate_parameters, larger_model, parameter_count
from examples.miniature.settings import FAST, FULL, Settings
from examples.quickstart.samples import padded
from examples.quickstart.train_specialists import specialist_config
from examples.shared.same_data import drawn

DOMAINS = ("text", "code", "math")


def specialist(seed: int, rows: int = 4096) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{"vocab_size": rows, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128},
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def samples(seed: int) -> list[tuple[list[int], int]]:
    """Ids and prompt lengths, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(3, 4096, (prompt + response,), generator=generator).tolist(), prompt)
        for prompt, response in ((5, 9), (3, 4), (8, 1), (2, 12))
    ]


def log_probabilities(model: Any, ids: list[int], rows: int = 4096) -> torch.Tensor:
    """Float64 log probabilities [positions, rows] by the whole model, one sample at a time."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=torch.tensor([ids])).logits[0, :, :rows]
    return logits.log_softmax(-1)


def test_the_evaluator_equals_the_formula_in_float64() -> None:
    model = specialist(1, rows=4112)
    found = sample_losses(model, samples(1))
    for index, (ids, prompt) in enumerate(samples(1)):
        whole = log_probabilities(model, ids)
        expected = -sum(whole[place - 1, ids[place]].item() for place in range(prompt, len(ids)))
        assert found["tokens"][index] == len(ids) - prompt
        assert found["sums"][index] == pytest.approx(expected, rel=1e-5)


def test_an_expert_of_btx_is_the_specialists_ffn_and_the_rest_is_averaged() -> None:
    own = [specialist(1), specialist(2, rows=4112), specialist(3, rows=4097)]
    model = btx_model(own).eval()
    for layer in range(2):
        block = model.model.layers[layer].mlp
        block.gate.top_k = 1
        for expert in range(3):
            state = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(expert))
            with torch.no_grad():
                block.gate.weight.zero_()
                block.gate.weight[expert] = state[0, 0]
                torch.testing.assert_close(block(state), own[expert].model.layers[layer].mlp(state))
    mean = torch.stack([one.model.layers[1].self_attn.q_proj.weight for one in own]).mean(0)
    torch.testing.assert_close(model.model.layers[1].self_attn.q_proj.weight, mean)
    heads = torch.stack([one.lm_head.weight[:4096] for one in own]).mean(0)
    torch.testing.assert_close(model.lm_head.weight, heads)


@pytest.mark.parametrize("settings", [FULL, FAST], ids=["full", "fast"])
def test_the_larger_model_is_as_large_as_the_fused_one(settings: Settings) -> None:
    with torch.device("meta"):
        single = parameter_count(LlamaForCausalLM(specialist_config("text", 4096, settings.shape)))
        total = 3 * single + gate_parameters(settings)
        larger = larger_model(settings, total)
    assert abs(parameter_count(larger) / total - 1) < 0.02
    assert larger.config.num_hidden_layers == settings.shape.layers
    gate = torch.nn.Sequential(
        torch.nn.Linear(settings.shape.hidden_size, settings.gate_hidden_size),
        torch.nn.Linear(settings.gate_hidden_size, 1),
    )
    assert gate_parameters(settings) == parameter_count(gate)


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_the_dense_mixture_equals_the_formula_in_float64(mix: str) -> None:
    own = [specialist(seed) for seed in (1, 2, 3)]
    torch.manual_seed(5)
    gate = {"fc1.weight": torch.randn(8, 32), "fc1.bias": torch.randn(8)}
    gate |= {"fc2.weight": torch.randn(1, 8), "fc2.bias": torch.randn(1)}
    # three views of one sample: other prompts, the same response
    response = [7, 8, 9, 10]
    views = [([1, 5, *response], 2), ([1, 6, 11, *response], 3), ([3, *response], 1)]
    found, weights = Mixture(own, gate, mix).losses(views)
    double = {name: tensor.double() for name, tensor in gate.items()}
    scores, logits = [], []
    with torch.no_grad():
        for model, (ids, prompt) in zip(own, views, strict=True):
            whole = copy.deepcopy(model).double()(input_ids=torch.tensor([ids]), output_hidden_states=True)
            places = range(prompt - 1, len(ids) - 1)
            hidden = whole.hidden_states[-1][0, places]
            inner = (hidden @ double["fc1.weight"].T + double["fc1.bias"]).clamp_min(0)
            scores.append(inner @ double["fc2.weight"].T + double["fc2.bias"])
            logits.append(whole.logits[0, places])
    expected = torch.cat(scores, dim=1).softmax(1)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-4, atol=1e-5)
    for place, token in enumerate(response):
        each = [own[place] for own in logits]
        if mix == "logits":
            probabilities = sum(w * z for w, z in zip(expected[place], each, strict=True)).softmax(-1)
        else:
            probabilities = sum(w * z.softmax(-1) for w, z in zip(expected[place], each, strict=True))
        assert found[place].item() == pytest.approx(-probabilities[token].log().item(), rel=1e-4)


def test_fine_tuning_sees_the_samples_of_the_fused_runs_stages() -> None:
    steps = list(drawn(FAST, 1, [50, 40, 30], ("warmup", "joint")))
    assert len(steps) == FAST.warmup_steps + FAST.joint_steps
    assert all([domain for domain, _ in pairs] == [0, 0, 1, 1, 2, 2] for pairs in steps)
    assert steps[0] != steps[FAST.warmup_steps]
    batch = padded(samples(1))
    for row, (ids, prompt) in enumerate(samples(1)):
        places = (batch.labels[row] != -100).nonzero()[:, 0]
        assert (places + 1).tolist() == list(range(prompt, len(ids)))
        assert batch.ids[row, places + 1].tolist() == batch.labels[row, places].tolist() == ids[prompt:]


UNTIL_FLAT = dataclasses.replace(FAST, flat_interval=2, batch_tokens=64, embedding_rate=1e-3)


def until_flat_trainer(kept: Path | None = None) -> Any:
    """What is validated has nothing to do with what is trained on: soon there is nothing to gain."""
    data = {"text": samples(1)}, {"text": samples(2)}
    return until_flat.Trainer(specialist(1), *data, UNTIL_FLAT, 1_000_000, Random(1), kept)


@pytest.fixture(scope="module")
def whole() -> tuple[Any, dict[str, Any]]:
    """A training that nothing stopped, and what it says of itself; not to be changed by a test."""
    trainer = until_flat_trainer()
    return trainer, trainer.run()


def test_training_ends_where_the_dev_loss_is_flat_and_keeps_the_best_state(whole: tuple[Any, dict[str, Any]]) -> None:
    trainer, facts = whole
    assert facts["flat"] and facts["steps"] < 500
    looks = [line["dev"] for line in facts["curve"]]
    assert facts["dev"] == min(looks)
    assert mean_loss(trainer.model, samples(2)) == pytest.approx(min(looks), rel=1e-6)
    assert facts["curve"][-1]["phase"] == "decay"


def test_a_training_that_is_not_flat_ends_at_its_limit_with_its_decay() -> None:
    settings = dataclasses.replace(FAST, flat_interval=1, batch_tokens=64, flat_decay=1.0)
    most = 20 * sum(len(ids) for ids, _ in samples(1))
    # dev is what is trained on: there is always something to gain
    data = ({"text": samples(1)}, {"text": samples(1)})
    facts = until_flat.Trainer(specialist(1), *data, settings, most, Random(1)).run()
    assert not facts["flat"] and facts["curve"][-1]["phase"] == "decay"
    # as much again for the decay; a step is at most 64 tokens
    assert most - 3 * 64 <= facts["tokens"] <= most + 3 * 64


@pytest.mark.parametrize(("kept_at", "look"), [("constant", 2), ("decay", 1)])
def test_a_killed_training_goes_on_to_the_same_weights(
    whole: tuple[Any, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_at: str, look: int
) -> None:
    monkeypatch.setattr(until_flat, "LOOKS_BETWEEN_KEPT", 1)
    uninterrupted, expected = whole
    killed = until_flat_trainer(tmp_path / "kept")
    seen = []

    def kill(keep: Any = killed._keep) -> None:
        keep()
        seen.append(killed.curve[-1]["phase"])
        if seen.count(kept_at) == look:
            # what is done after the training was last kept is lost
            killed._step(1.0)
            raise KeyboardInterrupt

    monkeypatch.setattr(killed, "_keep", kill)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = until_flat_trainer(tmp_path / "kept")
    assert again.run() == expected
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, uninterrupted.model.state_dict()[name])
    # that of another training is left alone
    other = until_flat.Trainer(
        specialist(1), {"text": samples(1)[:-1]}, {"text": samples(2)}, UNTIL_FLAT, 99, Random(1), tmp_path / "kept"
    )
    other._go_on()
    assert other._steps == 0


@pytest.mark.parametrize(
    ("what", "domain", "parts"),
    [
        ("specialist", "text", {"text.specialist", "text.dev"}),
        ("larger", None, {f"{name}.{part}" for name in DOMAINS for part in ("specialist", "fusion", "dev")}),
        ("trained-on", "text", {"text.fusion"}),
        ("fine-tune", "text", {f"{name}.{part}" for name in DOMAINS for part in ("fusion", "dev")}),
    ],
)
def test_each_model_learns_from_its_own_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, domain: str | None, parts: set[str]
) -> None:
    seen = set()

    def encode(path: Path, *_: Any) -> list[Any]:
        seen.add(path.name.removesuffix(".jsonl"))
        return []

    def stop(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(train, "encode", encode)
    for name in ("specialist_tokenizer", "LlamaForCausalLM", "specialist_config", "larger_model", "fused_parameters"):
        monkeypatch.setattr(train, name, MagicMock())
    monkeypatch.setattr(train, "load", lambda _: (MagicMock(), MagicMock()))
    for name in ("Trainer", "tokens_of_run"):
        monkeypatch.setattr(train, name, stop)
    monkeypatch.setattr(train.torch.optim, "AdamW", stop)
    args = SimpleNamespace(what=what, domain=domain, out=tmp_path, to=tmp_path / "to", seed=1, start=tmp_path)
    args.metrics = None
    with pytest.raises(InterruptedError):
        if what in ("specialist", "larger"):
            train.from_scratch(args, FAST)
        elif what == "trained-on":
            train.trained_on(args, FAST)
        else:
            train.fine_tune(MagicMock(), MagicMock(), "text", args, FAST)
    assert seen == parts
