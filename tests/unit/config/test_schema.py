"""Impossible values are refused by their keys, the bounds themselves are not, and a wrong name gets the nearest."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from megafuser.config.checkpoint import CheckpointConfig
from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.gate import GateConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.parameter_groups import GroupConfig
from megafuser.config.schema import EvaluationConfig, RunConfig
from megafuser.config.specialists import BUILT_IN_TEMPLATES, SpecialistConfig, TemplateConfig
from megafuser.config.stages import JointConfig, StageConfig, WarmupConfig
from megafuser.config.values import InvalidValue, nearest

DOMAIN = DomainConfig(train=("t.jsonl",), valid=("v.jsonl",))


def run_config(**values: Any) -> RunConfig:
    given = {
        "run_dir": "runs/x",
        "specialists": tuple(SpecialistConfig(name, "c", "plain") for name in ("a", "b")),
        "data": DataConfig(domains={"text": DOMAIN}),
    }
    return RunConfig(**{**given, **values})


@pytest.mark.parametrize("stage", [WarmupConfig, JointConfig, lambda **values: StageConfig(10, 1, **values)])
@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", -1e-5), ("lr", math.nan), ("lr", math.inf), ("min_lr", -1.0), ("min_lr", 1.0), ("lr_warmup_steps", -1)],
)
def test_impossible_schedules(stage: Callable[..., StageConfig], key: str, value: float) -> None:
    with pytest.raises(InvalidValue) as caught:
        stage(**{key: value})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: WarmupConfig(steps=-1), "steps"),
        (lambda: JointConfig(samples_per_domain=0), "samples_per_domain"),
        (lambda: JointConfig(steps=5, lr_warmup_steps=6), "lr_warmup_steps"),
        (lambda: JointConfig(init_from=" "), "init_from"),
        (lambda: GateConfig(0), "hidden_size"),
        (lambda: GateConfig(temperature=0.0), "temperature"),
        (lambda: GateConfig(temperature=math.inf), "temperature"),
        (lambda: ParallelConfig(tensor=0), "tensor"),
        (lambda: ParallelConfig(pipeline=0), "pipeline"),
        (lambda: PrecisionConfig("fp32", "delayed"), "fp8"),
        (lambda: OptimizerConfig(weight_decay=-0.1), "weight_decay"),
        (lambda: OptimizerConfig(betas=(1.0, 0.9)), "betas.0"),
        (lambda: OptimizerConfig(betas=(0.9, -0.1)), "betas.1"),
        (lambda: OptimizerConfig(betas=(0.9, math.nan)), "betas.1"),
        (lambda: OptimizerConfig(eps=0.0), "eps"),
        (lambda: OptimizerConfig(clip_grad=-1.0), "clip_grad"),
        (lambda: OptimizerConfig(gate_lr_multiplier=-1.0), "gate_lr_multiplier"),
        (lambda: OptimizerConfig(precision_aware=True, distributed=False), "precision_aware"),
        (lambda: OptimizerConfig(moments_dtype="bf16"), "moments_dtype"),
        (lambda: OptimizerConfig(offload_fraction=1.5), "offload_fraction"),
        (lambda: OptimizerConfig(offload_fraction=0.5, distributed=False), "offload_fraction"),
        (lambda: OptimizerConfig(offload_fraction=0.5, moments_dtype="bf16", precision_aware=True), "moments_dtype"),
        (lambda: ParallelConfig(virtual_pipeline=2), "virtual_pipeline"),
        (lambda: ParallelConfig(pipeline=2, virtual_pipeline=0), "virtual_pipeline"),
        (lambda: ParallelConfig(context=2), "context"),
        (lambda: ParallelConfig(overlap_param_gather=True), "overlap_param_gather"),
        (lambda: PrecisionConfig(fp8_first_last_bf16=True), "fp8_first_last_bf16"),
        (lambda: PrecisionConfig(fp8="delayed", fp8_first_last_bf16=True), "fp8_first_last_bf16"),
        (lambda: MemoryConfig(recompute_layers=0), "recompute_layers"),
        (lambda: MemoryConfig(loss_chunk_mib=0), "loss_chunk_mib"),
        (lambda: WarmupConfig(row_width=0), "row_width"),
        (lambda: run_config(joint=JointConfig(row_width=4095)), "joint.row_width"),
        (
            lambda: run_config(
                parallel=ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True),
                optimizer=OptimizerConfig(distributed=False),
            ),
            "parallel.overlap_param_gather",
        ),
        (lambda: EvaluationConfig(interval=0), "interval"),
        (lambda: EvaluationConfig(samples_per_domain=0), "samples_per_domain"),
        (lambda: CheckpointConfig(interval=0), "interval"),
        (lambda: CheckpointConfig(keep=0), "keep"),
        (lambda: DomainConfig(train=(), valid=("v",)), "train"),
        (lambda: DomainConfig(train=("t", ""), valid=("v",)), "train.1"),
        (lambda: DataConfig(domains={}), "domains"),
        (lambda: DataConfig(domains={"a/b": DOMAIN}), "domains"),
        (lambda: DataConfig(domains={"text": DOMAIN}, sequence_length=0), "sequence_length"),
        (lambda: DataConfig(domains={"text": DOMAIN}, end_token=""), "end_token"),
        (lambda: SpecialistConfig("a b", "c", "plain"), "name"),
        (lambda: SpecialistConfig("..", "c", "plain"), "name"),
        (lambda: SpecialistConfig("a\n", "c", "plain"), "name"),
        (lambda: SpecialistConfig("", "c", "plain"), "name"),
        (lambda: SpecialistConfig("a", "", "plain"), "checkpoint"),
        (lambda: SpecialistConfig("a", "c", "ultraml"), "template"),
        (lambda: TemplateConfig(""), "prompt"),
        (lambda: run_config(run_dir=""), "run_dir"),
        (lambda: run_config(seed=-1), "seed"),
        (lambda: run_config(specialists=(SpecialistConfig("a", "c", "plain"),)), "specialists"),
        (lambda: run_config(specialists=(SpecialistConfig("a", "c", "plain"),) * 2), "specialists.1.name"),
        (lambda: run_config(precision=PrecisionConfig(fp8="delayed"), backend="torch"), "precision.fp8"),
        (lambda: run_config(precision=PrecisionConfig(fp8="delayed"), device="cpu"), "precision.fp8"),
        (lambda: run_config(device="cpu", backend="transformer_engine"), "backend"),
        (lambda: EvaluationConfig(patience=0), "patience"),
        (lambda: WarmupConfig(load_balance=-0.1), "load_balance"),
        (lambda: JointConfig(load_balance=math.inf), "load_balance"),
        (lambda: GroupConfig(), "lr"),
        (lambda: GroupConfig(lr=-1.0), "lr"),
        (lambda: GroupConfig(weight_decay=math.nan), "weight_decay"),
        (lambda: run_config(joint=JointConfig(groups={"c": GroupConfig(lr=1.0)})), "joint.groups.c"),
        (lambda: run_config(joint=JointConfig(frozen=("a", "c"))), "joint.frozen.1"),
        (lambda: run_config(joint=JointConfig(frozen=("a", "a"))), "joint.frozen.1"),
        (lambda: run_config(joint=JointConfig(frozen=("gate",))), "joint.frozen.0"),
        (lambda: run_config(joint=JointConfig(groups={"a": GroupConfig(lr=1.0)}, frozen=("a",))), "joint.groups.a"),
        (
            lambda: run_config(
                joint=JointConfig(groups={"gate": GroupConfig(lr=1.0)}),
                optimizer=OptimizerConfig(gate_lr_multiplier=2.0),
            ),
            "joint.groups.gate.lr",
        ),
        (
            lambda: run_config(specialists=tuple(SpecialistConfig(name, "c", "plain") for name in ("a", "gate"))),
            "specialists.1.name",
        ),
        (
            lambda: run_config(specialists=tuple(SpecialistConfig(name, "c", "plain") for name in ("q2.5", "q2"))),
            "specialists.0.name",
        ),
        (
            lambda: run_config(
                checkpoint=CheckpointConfig(interval=100, keep_best=True), evaluation=EvaluationConfig(40)
            ),
            "checkpoint.keep_best",
        ),
    ],
)
def test_impossible_values(make: Callable[[], object], key: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()
    assert caught.value.key == key


def test_the_bounds_themselves_are_possible() -> None:
    StageConfig(steps=1, samples_per_domain=1, lr=0.0, min_lr=0.0)
    StageConfig(steps=3, samples_per_domain=1, lr=1e-5, min_lr=1e-5, lr_warmup_steps=3)
    OptimizerConfig(betas=(0.0, 0.999), clip_grad=0.0)
    OptimizerConfig(offload_fraction=1.0, gate_lr_multiplier=0.0)
    ParallelConfig(pipeline=2, virtual_pipeline=2, overlap_grad_reduce=True, overlap_param_gather=True)
    PrecisionConfig(fp8="blockwise", fp8_first_last_bf16=True)
    run_config(seed=2**32 - 1)
    EvaluationConfig(patience=1)
    GateConfig(temperature=1e-3)
    GroupConfig(lr=0.0, weight_decay=0.0)
    run_config(checkpoint=CheckpointConfig(interval=120, keep_best=True), evaluation=EvaluationConfig(40))
    run_config(joint=JointConfig(frozen=("a", "b"), groups={"gate": GroupConfig(lr=1.0)}))
    # its weight decay may be its own beside the multiplier
    weight_decay = JointConfig(groups={"gate": GroupConfig(weight_decay=0.1)})
    run_config(joint=weight_decay, optimizer=OptimizerConfig(gate_lr_multiplier=2.0))
    run_config(precision=PrecisionConfig(fp8="blockwise"))


def test_an_unknown_template_lists_the_built_in_ones_and_the_nearest() -> None:
    with pytest.raises(InvalidValue, match="the nearest valid one is 'ultralm'") as caught:
        SpecialistConfig("a", "c", "ultraml")
    assert all(name in caught.value.problem for name in BUILT_IN_TEMPLATES)


def test_every_built_in_template_exists() -> None:
    for name in BUILT_IN_TEMPLATES:
        SpecialistConfig("a", "c", name)


def test_nearest() -> None:
    assert nearest("stesp", ["steps", "lr"]) == "the nearest valid one is 'steps'"
    assert nearest("xyz", ["steps", "lr"], "warmup") == "valid are warmup.steps, warmup.lr"
    assert nearest("xyz", ["steps", "lr"], otherwise="leave it out") == "leave it out"
