"""The fused model against an independent dense implementation: per-token losses, gate weights, every gradient."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megafuser.checkpoint.loading import load_specialist_weights
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.config.gate import GateConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import JointConfig, WarmupConfig
from megafuser.data.row_building import build_row
from megafuser.data.tokenization import EncoderSpec, load_tokenizers
from megafuser.families.known import FAMILIES
from megafuser.families.weight_mapping import WeightMapping
from megafuser.fusion.model import FusedModel, build_fused_model, fused_config
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.card import ArchitectureCard
from megafuser.training.engine import Engine
from tests.fused_case import SPECIALISTS, make_hf_specialists, samples_of, write_jsonl
from tests.reference import DenseFusion, relative_difference
from tests.small_domain import read_samples, tokenize_domain
from tests.tiny_models import SHARED_VOCABULARY
from tests.unit.specialist.small_card import CARD

TOLERANCE = 1e-4
EOS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from megafuser.conversion.hf_to_mcore import import_specialist

    directory = tmp_path_factory.mktemp("fused")
    for name, hf in make_hf_specialists(directory).items():
        import_specialist(hf, directory / "mcore" / name, verify="none")
    return directory


@pytest.fixture()
def process_group():
    with single_process_cpu():
        yield


def build(root: Path) -> FusedModel:
    """The fused model with loaded specialists and a gate away from its uniform start."""
    directories = {name: root / "mcore" / name for name in SPECIALISTS}
    model = build_fused_model(
        {name: read_specialist(directory)[1] for name, directory in directories.items()},
        parallel=ParallelConfig(),
        precision=PrecisionConfig(dtype="fp32"),
        backend="torch",
        gate=GateConfig(16),
        shared_vocabulary=SHARED_VOCABULARY,
        seed=3,
    )
    for specialist, directory in zip(model.specialists, directories.values(), strict=True):
        load_specialist_weights(specialist, directory)
    with torch.no_grad():
        model.gate.fc2.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(5))
        model.gate.fc1.bias.normal_(0, 0.5, generator=torch.Generator().manual_seed(6))
    return model


def reference(root: Path, model: FusedModel) -> DenseFusion:
    gate = {name: value for name, value in model.gate.state_dict().items()}
    return DenseFusion({name: root / "hf" / name for name in SPECIALISTS}, gate, SHARED_VOCABULARY)


def rows(root: Path, samples: list[dict[str, Any]], width: int, split: list[list[int]]):
    """The samples packed into rows as told."""
    path = write_jsonl(root / "samples.jsonl", samples)
    tokenizers = load_tokenizers({name: root / "hf" / name for name in SPECIALISTS})
    spec = EncoderSpec(
        templates=tuple(SPECIALISTS[name]["template"] for name in SPECIALISTS),
        end_id=EOS,
        shared_vocabulary=SHARED_VOCABULARY,
        limit=width,
        rows=tuple(len(tokenizer) for tokenizer in tokenizers.values()),
    )
    domain = tokenize_domain("any", read_samples([path]), spec, list(tokenizers.values()))
    assert len(domain) == len(samples), domain.refused
    return [build_row([domain], np.array([[0, sample] for sample in row]).reshape(-1, 2), width) for row in split]


def test_losses_and_gate_equal_the_dense_reference(root: Path, process_group: None) -> None:
    model = build(root)
    samples = samples_of("fox", 5)
    (row,) = rows(root, samples, 1024, [[0, 1, 2, 3, 4]])
    with torch.no_grad():
        output = model(row, with_diagnostics=True)
    dense = [reference(root, model).sample(sample) for sample in samples]
    for name in ("fused", "weights", "specialists", "uniform"):
        expected = torch.cat([sample[name] for sample in dense])
        assert relative_difference(getattr(output, name), expected) < TOLERANCE, name
    assert output.weights.std(dim=0).min() > 1e-3  # a gate that is constant would hide misaligned positions


def test_packing_does_not_change_a_token_loss(root: Path, process_group: None) -> None:
    model = build(root)
    samples = samples_of("dog", 6)
    (packed,) = rows(root, samples, 1024, [[0, 1, 2, 3, 4, 5]])
    alone = rows(root, samples, 256, [[0], [1], [2], [3], [4], [5]])
    with torch.no_grad():
        together = model(packed).fused
        apart = torch.cat([model(row).fused for row in alone])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_positions_restart_in_a_row_without_pads(root: Path, process_group: None) -> None:
    """megatron-core's packed RoPE stops restarting when its table is as long as the row; two segments must not."""
    model = build(root)
    samples = samples_of("sum", 2)
    (alone,) = rows(root, samples, 256, [[1]])
    lengths = [view.used for view in rows(root, samples, 512, [[0, 1]])[0].specialists]
    (tight,) = rows(root, samples, max(lengths), [[0, 1]])
    with torch.no_grad():
        torch.testing.assert_close(model(tight).fused[tight.samples == 1], model(alone).fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_joint_gradients_equal_autograd_of_the_dense_reference(root: Path, process_group: None, balance: float) -> None:
    model = build(root)
    samples = samples_of("range", 5)
    dense = reference(root, model)
    loss, expected = dense.batch_gradients(samples, balance)
    stage = JointConfig(steps=1, load_balance=balance)
    engine = Engine([model], OptimizerConfig(), stage, domains=1, joint=True)
    sums = engine.compute_gradients(rows(root, samples, 512, [[0, 1], [2], [3, 4], []]))
    assert float(sums[0, 0] / sums[0, 1]) == pytest.approx(loss, rel=1e-5)
    ours = {f"gate.{key}": value.main_grad for key, value in model.gate.named_parameters()}
    for name, specialist in zip(model.names, model.specialists, strict=True):
        card = read_specialist(root / "mcore" / name)[1]
        for mapping in (mapping for mapping in FAMILIES[card.family].mappings if mapping.exists(card)):
            for layer in range(card.num_layers) if mapping.per_layer else [None]:
                gradient = local_parameter(specialist, mapping.mcore, layer).main_grad
                for key, value in zip(mapping.sources, taken_apart(mapping, card, gradient), strict=True):
                    ours[f"{name}.{key.format(layer=layer)}"] = value
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert difference(ours[key], value, key) < TOLERANCE, key


def taken_apart(mapping: WeightMapping, card: ArchitectureCard, target: torch.Tensor) -> list[torch.Tensor]:
    """The rows of each of a mapping's sources, from those of its target."""
    parts = [torch.empty(shape) for shape in mapping.source_shapes(card)]
    first = 0
    for rows in mapping.row_ranges(card):
        count = rows.stop - rows.start
        parts[rows.source][rows.start : rows.stop] = target[first : first + count]
        first += count
    return parts


def difference(ours: torch.Tensor, expected: torch.Tensor, key: str) -> float:
    """Relative, except where the gradient is zero: softmax does not see the gate's common shift, fc2's bias."""
    return float(ours.abs().max()) if key.endswith("fc2.bias") else relative_difference(ours, expected)


def local_parameter(specialist: torch.nn.Module, key: str, layer: int | None) -> torch.nn.Parameter:
    """The parameter behind a checkpoint key (where a norm stands under its linear layer)."""
    key = key.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
    key = key.replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")
    return specialist.get_parameter(key.replace("layers.", f"layers.{layer}."))


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_warmup_gate_gradient_equals_the_dense_reference(root: Path, process_group: None, balance: float) -> None:
    model = build(root)
    samples = samples_of("nine", 4)
    _, expected = reference(root, model).batch_gradients(samples, balance)
    stage = WarmupConfig(steps=1, load_balance=balance)
    engine = Engine([model], OptimizerConfig(), stage, domains=1, joint=False)
    engine.compute_gradients(rows(root, samples, 512, [[0, 1, 2], [3]]))
    for key, value in model.gate.named_parameters():
        assert difference(value.main_grad, expected[f"gate.{key}"], key) < TOLERANCE, key
    assert all(parameter.grad is None for parameter in model.specialists.parameters())


def test_ids_outside_the_shared_vocabulary_get_no_probability(root: Path, process_group: None) -> None:
    """Raising the logits of an extra row and of a padded row must not change the loss."""
    model = build(root)
    (row,) = rows(root, samples_of("ten", 2), 512, [[0, 1]])
    with torch.no_grad():
        before = model(row, with_diagnostics=True)
        for specialist in model.specialists:
            specialist.head_weight()[SHARED_VOCABULARY:] = 100.0
        after = model(row, with_diagnostics=True)
    torch.testing.assert_close(before.fused, after.fused)
    torch.testing.assert_close(before.specialists, after.specialists)


@pytest.mark.parametrize("wrong", ["theta", "vocabulary"])
def test_a_wrong_theta_or_vocabulary_would_be_seen(root: Path, process_group: None, wrong: str) -> None:
    """The comparisons above are sharp enough: the classical silent mistakes are far outside their tolerance."""
    model = build(root)
    samples = samples_of("lazy", 3)
    (row,) = rows(root, samples, 1024, [[0, 1, 2]])
    dense = reference(root, model)
    if wrong == "theta":
        code = model.specialists[1]
        code.rotary_pos_emb.inv_freq = model.specialists[0].rotary_pos_emb.inv_freq
    else:
        model.shared_vocabulary += 16
    with torch.no_grad():
        ours = model(row).fused
    expected = torch.cat([dense.sample(sample)["fused"] for sample in samples])
    assert relative_difference(ours, expected) > 3 * TOLERANCE


def test_card_is_read_from_the_manifest(root: Path) -> None:
    manifest = json.loads((root / "mcore" / "code" / "manifest.json").read_text())
    assert manifest["content"]["card"]["rotary_base"] == 1e6


@pytest.mark.parametrize("qk_norms", [(False, False), (False, True), (True, False)])
def test_the_fused_configuration_is_of_all_specialists(qk_norms: tuple[bool, ...]) -> None:
    cards = [dataclasses.replace(CARD, qk_norm=qk_norm, hidden_size=48 + 48 * qk_norm) for qk_norm in qk_norms]
    config = fused_config(cards, parallel=ParallelConfig(), precision=PrecisionConfig(dtype="fp32"), backend="torch")
    assert config.qk_layernorm is any(qk_norms)
    assert config.hidden_size == 96 + 48 * sum(qk_norms)


def test_the_load_balance_term_is_large_enough_to_be_seen(root: Path, process_group: None) -> None:
    """Gradients with and without it differ by far more than the comparisons above allow."""
    model = build(root)
    samples = samples_of("nine", 4)
    gradients = [reference(root, model).batch_gradients(samples, balance)[1] for balance in (0.0, 0.5)]
    for key in ("gate.fc1.weight", "gate.fc2.weight", "text.model.norm.weight"):
        assert relative_difference(gradients[0][key], gradients[1][key]) > 100 * TOLERANCE, key
