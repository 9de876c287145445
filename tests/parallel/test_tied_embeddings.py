"""Joint steps with tied embeddings in one stage and in two, against Hugging Face's models and PyTorch's AdamW.

A tied weight's gradient has two parts, the embedding's and the output head's. In one stage the head's is in the
gradient buffer before the embedding's comes; in two, each copy has one part, and both need the sum, which counts once
in the norm. The other layouts' tests compare with one rank, so that one rank itself is compared here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megafuser.config.load import load_config
from megafuser.fusion.gate import Gate
from tests.fused_case import SPECIALISTS, make_case, samples_of, write_config
from tests.parallel.launch import run_ranks
from tests.parallel.layout_cases import run_job
from tests.ports import free_ports
from tests.reference import DenseFusion
from tests.tiny_models import SHARED_VOCABULARY

STEPS = 3
SAMPLES = 2
TOLERANCE = 1e-4
LR = 1e-3
WEIGHT_DECAY = 0.1
# one that is not tied beside two that are
TIED: dict[str, dict[str, Any]] = {
    name: {**settings, "tie_word_embeddings": name != "code"} for name, settings in SPECIALISTS.items()
}
Steps = list[list[float]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tied")
    values = make_case(root, train=SAMPLES, valid=1, specialists=TIED)
    # several rows
    values["data"]["sequence_length"] = 256
    # all samples in each step, at a constant learning rate: the reference needs neither sampler nor schedule
    values["joint"] = {"steps": STEPS, "samples_per_domain": SAMPLES, "lr": LR, "min_lr": LR}
    values["optimizer"] = {"weight_decay": WEIGHT_DECAY}
    return write_config(root / "config.yaml", values)


@pytest.fixture(scope="module")
def expected(config: Path) -> Steps:
    """By step, the losses by domain and the gradient norm, in float64."""
    settings = load_config(config, [])
    gate = Gate([32] * len(TIED), settings.gate, seed=settings.seed, dtype=torch.float32).state_dict()
    dense = DenseFusion({name: config.parent / "hf" / name for name in TIED}, gate, SHARED_VOCABULARY)
    named = dict(dense.gate) | {
        f"{name}.{key}": value for name, model in dense.models.items() for key, value in model.named_parameters()
    }
    assert {key for key in named if "lm_head" in key} == {"code.lm_head.weight"}
    decayed = [value for value in named.values() if value.dim() > 1]
    others = [value for value in named.values() if value.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=LR,
        betas=settings.optimizer.betas,
        eps=settings.optimizer.eps,
        weight_decay=WEIGHT_DECAY,
    )
    steps = []
    for _ in range(STEPS):
        losses = [torch.cat([dense.sample(sample)["fused"] for sample in samples_of(name, SAMPLES)]) for name in TIED]
        torch.cat(losses).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(list(named.values()), settings.optimizer.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        steps.append([*(loss.mean().item() for loss in losses), norm.item()])
    return steps


def job(config: Path, *overrides: str) -> dict[str, Any]:
    run = {"name": "tied", "config": str(config), "overrides": overrides, "stage": "joint"}
    return {"port": free_ports(1)[0], "steps": STEPS, "runs": [run]}


def assert_same(found: Steps, expected: Steps) -> None:
    assert len(found) == len(expected) == STEPS
    for ours, reference in zip(found, expected, strict=True):
        assert ours == pytest.approx(reference, rel=TOLERANCE)


def test_the_reference_moves(expected: Steps) -> None:
    for first, last in zip(expected[0], expected[-1], strict=True):
        assert abs(last / first - 1) > 50 * TOLERANCE


@pytest.mark.parametrize("distributed", ["true", "false"])
def test_in_one_stage(config: Path, expected: Steps, distributed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "")  # which the job sets, and which is put back after the test
    (result,) = run_job(job(config, f"optimizer.distributed={distributed}"))
    assert_same(result["steps"], expected)


@pytest.mark.parallel
def test_in_two_stages(config: Path, expected: Steps, tmp_path: Path) -> None:
    jobs, results = tmp_path / "jobs.json", tmp_path / "results.json"
    jobs.write_text(json.dumps([job(config, "parallel.pipeline=2")]), encoding="utf-8")
    run_ranks(2, "tests.parallel.layout_cases", [str(jobs), str(results)], timeout=300)
    (result,) = json.loads(results.read_text(encoding="utf-8"))
    assert_same(result["steps"], expected)
