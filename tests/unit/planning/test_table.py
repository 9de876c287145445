"""The plan as text."""

import dataclasses
import re

from megafuser.config.compute import ParallelConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.schema import EvaluationConfig
from megafuser.planning.gpus import GIB
from megafuser.planning.plan import plan_stage
from megafuser.planning.table import heading, stage_lines
from tests.unit.planning.architectures import UNEQUAL
from tests.unit.planning.made_up_tasks import make_task

TP8_PP2 = ParallelConfig(tensor=8, pipeline=2, sequence=True)


def test_columns_stand_below_each_other() -> None:
    task = make_task(parallel=TP8_PP2, optimizer=OptimizerConfig(offload_fraction=0.5))
    stage = plan_stage(task, "joint")
    lines = stage_lines(task, stage, steps=5000)
    table = [line for line in lines if line.startswith(("GiB", "pipeline rank"))]
    assert len(table) == 3 and len({len(line) for line in table}) == 1
    assert table[1].startswith("pipeline rank 0 (8 ranks)") and "20+20+20" in table[1]
    # all columns but the first three add up to the last
    *parts, total = (float(cell) if cell != "-" else 0.0 for cell in re.split(r"\s{2,}", table[1])[3:])
    assert abs(sum(parts) - total) < 0.06
    assert abs(total - stage.ranks[0].total / GIB) < 0.01
    assert any(line.startswith("host memory for offloaded states: ") for line in lines)


def test_heading_says_the_layout() -> None:
    parallel = ParallelConfig(pipeline=2, virtual_pipeline=2)
    lines = heading(make_task(UNEQUAL, gpus=4, gpu=None, parallel=parallel), None)
    assert "on 4 CPU ranks" in lines[0] and lines[1].startswith("TP 1 x PP 2 x VP 2 x DP 2; bf16; backend torch")


def test_communication_has_a_line_where_there_is_any() -> None:
    stage = plan_stage(make_task(parallel=TP8_PP2), "joint")
    (line,) = (line for line in stage_lines(make_task(parallel=TP8_PP2), stage, 1) if "communication" in line)
    assert line.startswith(f"of it communication: {stage.time.communication.total:.2f} s (tensor ")
    assert line.endswith("; at 450 GB/s within a node and 50 between nodes")
    assert f"), {stage.time.communication.tensor_hidden:.2f} s more while ranks compute; at " in line
    alone = make_task(gpus=1)
    assert not any("communication" in line for line in stage_lines(alone, plan_stage(alone, "joint"), 1))


def test_durations() -> None:
    task = make_task(parallel=TP8_PP2)
    stage = plan_stage(task, "joint")
    for steps, unit in ((1, "seconds"), (100, "minutes"), (5000, "hours"), (500_000, "days")):
        assert stage_lines(task, stage, steps)[-1].endswith(unit)


def test_with_patience_a_stage_takes_at_most_its_time() -> None:
    task = make_task(parallel=TP8_PP2)
    patient = dataclasses.replace(
        task, config=dataclasses.replace(task.config, evaluation=EvaluationConfig(patience=3))
    )
    stage = plan_stage(patient, "joint")
    always, at_most = (stage_lines(one, stage, 5000)[-1] for one in (task, patient))
    time = always.removeprefix("stage: 5000 steps, ")
    assert always != time
    assert at_most == f"stage: at most 5000 steps, at most {time}: evaluation.patience=3 may end it before"
