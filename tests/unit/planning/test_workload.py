"""Lengths from files or assumed, and the rows that a step makes of them."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from megafuser.config.compute import ParallelConfig
from megafuser.config.data import DomainConfig, SourceConfig
from megafuser.config.schema import RunConfig
from megafuser.config.stages import JointConfig
from megafuser.data.packing import pack
from megafuser.planning.workload import find_samples, step_workload
from tests.unit.planning.made_up_tasks import make_task


def with_domains(domains: dict[str, DomainConfig]) -> RunConfig:
    config = make_task().config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, domains=domains))


def config_with(paths: dict[str, Path]) -> RunConfig:
    return with_domains({name: DomainConfig((str(path),), ("v.jsonl",)) for name, path in paths.items()})


def test_lengths_of_the_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    chat = [{"role": "user", "content": "x" * 70}, {"role": "assistant", "content": "y" * 35}]
    one.write_text(json.dumps({"instruction": "x" * 35, "response": "y" * 70}) + "\n")
    two.write_text(json.dumps({"messages": chat * 2}) + "\nno JSON\n[1]\n")
    samples = find_samples(config_with({"one": one, "two": two}), None)
    assert samples.lengths.tolist() == [30, 60] and samples.responses.tolist() == [20, 20]
    assert "first 2 training samples" in samples.source


def test_domains_with_weights_have_their_shares(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path, size in ((one, 35), (two, 70)):
        path.write_text((json.dumps({"instruction": "x" * size, "response": "y" * size}) + "\n") * 10)
    config = config_with({"one": one, "two": two})
    weighted = dataclasses.replace(config, data=dataclasses.replace(config.data, weights={"two": 1.0, "one": 3.0}))
    assert find_samples(config, None).lengths.mean() == pytest.approx(30)
    assert find_samples(weighted, None).lengths.mean() == pytest.approx(0.75 * 20 + 0.25 * 40)


def test_domains_that_are_not_balanced_count_by_their_size(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path, size, count in ((one, 350, 3800), (two, 3500, 200)):
        path.write_text((json.dumps({"instruction": "x" * size, "response": "y" * size}) + "\n") * count)
    config = config_with({"one": one, "two": two})
    pooled = dataclasses.replace(config, data=dataclasses.replace(config.data, balanced=False))
    assert find_samples(config, None).lengths.mean() == pytest.approx((200 + 2000) / 2)
    assert find_samples(pooled, None).lengths.mean() == pytest.approx(0.95 * 200 + 0.05 * 2000, rel=0.05)


@pytest.mark.parametrize("ranks", [1, 16, 64])
def test_rows_are_as_wide_as_training_makes_them(ranks: int) -> None:
    """Rows that are more than the samples need, for each rank to have as many, are narrower."""
    task = make_task()
    config = dataclasses.replace(task.config, data=dataclasses.replace(task.config.data, sequence_length=4096))
    stage = JointConfig(samples_per_domain=96 // len(config.data.domains))
    work = step_workload(config, stage, find_samples(config, 1024), ranks)
    packed = pack(np.full((work.samples, 1), 1024), 4096, rows_multiple=ranks)
    assert (work.micro_batches * ranks, work.width) == (len(packed.rows), packed.widths[0])


def test_lengths_of_every_format_with_other_field_names(tmp_path: Path) -> None:
    rows = [{"problem": "x" * 35, "solution": "y" * 35 * size} for size in (1, 2)]
    array, lines, table = tmp_path / "a.json", tmp_path / "b.jsonl.gz", tmp_path / "c.parquet"
    array.write_text(json.dumps(rows))
    lines.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    domains = {
        path.suffix[1:]: DomainConfig((str(path),), fields={"instruction": "problem", "response": "solution"})
        for path in (array, lines, table)
    }
    samples = find_samples(with_domains(domains), None)
    assert samples.lengths.tolist() == [20, 30] * 3 and samples.responses.tolist() == [10, 20] * 3


def test_data_sets_are_not_fetched(tmp_path: Path) -> None:
    domains = {"one": DomainConfig((SourceConfig(dataset=str(tmp_path)),))}
    samples = find_samples(with_domains(domains), None)
    assert "assumption" in samples.source


def test_an_assumption_where_a_file_is_missing(tmp_path: Path) -> None:
    samples = find_samples(config_with({"one": tmp_path / "nowhere"}), None)
    assert samples.lengths.tolist() == [1024] and "assumption" in samples.source


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    assert find_samples(make_task().config, 300).lengths.tolist() == [300]
    assert find_samples(make_task().config, 10**6).lengths.tolist() == [4096]


@pytest.mark.parametrize(
    ("parallel", "data_parallel", "rows"),
    [
        (ParallelConfig(), 1, 24),
        (ParallelConfig(), 5, 5),
        (ParallelConfig(), 100, 1),
        (ParallelConfig(pipeline=4, virtual_pipeline=2), 4, 8),
    ],
)
def test_rows_of_a_step(parallel: ParallelConfig, data_parallel: int, rows: int) -> None:
    task = make_task(parallel=parallel)
    work = step_workload(task.config, task.config.joint, task.samples, data_parallel)
    assert (work.samples, work.tokens, work.response_tokens) == (96, 96 * 1024, 96 * 512)
    assert work.squares == 96 * 1024**2
    assert work.micro_batches == rows


def test_a_stage_may_have_wider_rows() -> None:
    task = make_task()
    work = step_workload(task.config, JointConfig(row_width=8192), task.samples, 1)
    assert (work.width, work.micro_batches) == (8192, 12)
