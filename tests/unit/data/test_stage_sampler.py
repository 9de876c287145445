"""A stage's sampler as the configuration wants it, and the warning about repeats."""

import numpy as np
import pytest

from megafuser.config.load import load_config
from megafuser.data.sampler import Sampler
from megafuser.data.stage_sampler import check_weights, repetitions, stage_sampler
from megafuser.errors import UserError
from tests.fused_case import write_config
from tests.unit.data.statistics_case import configuration, made_up


@pytest.fixture
def load(tmp_path):
    def loaded(*overrides):
        return load_config(write_config(tmp_path / "config.yaml", configuration()), list(overrides))

    return loaded


def test_repeats_are_told_by_domain_and_by_weighted_source(load):
    train, _ = made_up()
    sampler = stage_sampler(load(), "joint", train)
    assert repetitions(sampler, 400, ["text", "code"]) == [
        "domain text: 4 samples for 2000 draws: each is seen 500 times",
        "domain code, data/a.jsonl: 2 samples for 1500 draws: each is seen 750 times",
        "domain code, data/b.jsonl: 3 samples for 500 draws: each is seen 167 times",
    ]
    assert repetitions(sampler, 1, ["text", "code"]) == [
        "domain text: 4 samples for 5 draws: each is seen 1.25 times",
        "domain code, data/a.jsonl: 2 samples for 4 draws: each is seen 2 times",
    ]


def test_large_enough_domains_are_not_told_of(load):
    sampler = Sampler([20, 3], 2, True, 1, "joint")
    assert repetitions(sampler, 10, ["text", "math"]) == [
        "domain math: 3 samples for 20 draws: each is seen 6.67 times"
    ]


def test_the_configuration_decides_how_samples_are_drawn(load):
    train, _ = made_up()

    def counts(*overrides):
        sampler = stage_sampler(load(*overrides), "warmup", train)
        return np.bincount(np.concatenate([sampler.step(n)[:, 0] for n in range(1, 10)])).tolist()

    assert counts() == [18, 18]
    assert counts("data.balanced=false") == [16, 20], "four pools of nine samples"
    assert counts("data.weights={text: 2, code: 1}") == [24, 12]
    assert counts("data.weights={code: 1, text: 2}") == [24, 12], "weights go by name"


def test_weights_of_sources_come_from_the_configuration(load):
    train, _ = made_up()
    steps = [stage_sampler(load(), "warmup", train).step(n) for n in range(1, 9)]
    code = np.concatenate([step[step[:, 0] == 1, 1] for step in steps])
    assert (int((code < 2).sum()), len(code)) == (12, 16)


def test_a_weighted_source_without_samples_and_a_tiny_weight_are_refused(load):
    train, _ = made_up()
    train[1].source_sizes = (5, 0)
    with pytest.raises(UserError, match=r"data.domains.code: data/b.jsonl has a weight, but no sample of it is left"):
        stage_sampler(load(), "joint", train)
    train, _ = made_up()
    with pytest.raises(UserError, match=r"data.weights.text: its weight is 1e-06 of all weights"):
        stage_sampler(load("data.weights={text: 1.0e-6, code: 1}"), "joint", train)


def test_weights_are_checked_before_anything_is_read(load):
    check_weights(load().data)
    with pytest.raises(UserError, match=r"data.weights.text: its weight is 1e-06 of all weights"):
        check_weights(load("data.weights={text: 1.0e-6, code: 1}").data)
    with pytest.raises(UserError, match=r"data.domains.code.train.1: its weight is 3.3e-07 of all weights"):
        check_weights(load("data.domains.code.train=[{path: a, weight: 3}, {path: b, weight: 1.0e-6}]").data)
