"""Prompts meet neither gate nor output head, be rows split along the sequence or the model into stages.

The ranks count the tokens that reach both, and put NaN wherever the last stage's decoder has the hidden state of a
position that predicts no response token: no bit of a sum or a gradient may change. This file is also what they run.
"""

import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from megatron.core import parallel_state

from megafuser.config.load import load_config
from megafuser.config.schema import RunConfig
from megafuser.fusion.gate import Gate
from megafuser.fusion.mixture_loss import mixture_cross_entropy
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow, SpecialistRow
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import detect_world
from megafuser.training.engine import Engine
from tests.fused_case import make_case, write_config
from tests.parallel.launch import run_ranks
from tests.parallel.layout_cases import STAGES, start
from tests.ports import free_ports

LAYOUTS = (("parallel.tensor=2", "parallel.sequence=true"), ("parallel.pipeline=2",))


@pytest.mark.parallel
def test_prompts_meet_neither_gate_nor_head(tmp_path: Path) -> None:
    values = make_case(tmp_path, train=2, valid=1, num_hidden_layers=2)
    values["data"]["sequence_length"] = 256
    for stage in STAGES:
        values[stage] = {"steps": 1, "samples_per_domain": 2}
    config = write_config(tmp_path / "config.yaml", values)
    ports = free_ports(len(LAYOUTS))
    run_ranks(2, "tests.parallel.test_response_only_head", [str(config), *ports], timeout=300)


def start_with_random_gate(config: RunConfig, stage: str) -> tuple[Engine, list[PackedRow]]:
    """A stage's engine, and the micro-batches of a step."""
    engine, batches = start(config, stage)
    gate, rows = engine.model.gate, batches.rows(1)
    assert (gate is not None) == parallel_state.is_pipeline_last_stage()
    if gate is not None:
        # at its start the last layer is zero, and so is the first one's gradient
        torch.nn.init.normal_(gate.fc2.weight, generator=torch.Generator().manual_seed(0))
    assert len(rows) > 1 and all(0 < len(row.targets) < view.used for row in rows for view in row.specialists)
    return engine, rows


def measure(engine: Engine, rows: list[PackedRow]) -> dict[str, torch.Tensor]:
    """The sums and this rank's gradients, after a look at how many tokens gate and heads got."""
    model = engine.model
    with (
        mock.patch.object(Gate, "forward", autospec=True, side_effect=Gate.forward) as gate,
        mock.patch("megafuser.fusion.model.mixture_cross_entropy", wraps=mixture_cross_entropy) as loss,
    ):
        sums = engine.compute_gradients(rows)
    expected = [[len(row.targets)] * len(model.names) for row in rows] if model.gate is not None else []
    assert [[len(hidden) for hidden in call.args[1]] for call in gate.call_args_list] == expected, "tokens at the gate"
    assert [[len(hidden) for hidden in call.args[0]] for call in loss.call_args_list] == expected, "tokens at the heads"
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {"sums": sums, **{name: weight.main_grad.clone() for name, weight in trained.items()}}  # type: ignore[attr-defined]


def spoil_prompts(model: FusedModel) -> None:
    """Lets the decoders of the last stage give NaN at all positions but those that predict a response token."""
    streams = model.streams

    def spoiled(row: PackedRow) -> list[torch.Tensor]:
        return [_spoil(stream, view, model) for stream, view in zip(streams(row), row.specialists, strict=True)]

    model.streams = spoiled  # type: ignore[method-assign]


def _spoil(stream: torch.Tensor, view: SpecialistRow, model: FusedModel) -> torch.Tensor:
    prompts = torch.ones(view.input_ids.shape[1], dtype=torch.bool)
    prompts[view.response_positions] = False
    assert prompts.any()
    if model.config.sequence_parallel:
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        prompts = prompts.chunk(ranks)[parallel_state.get_tensor_model_parallel_rank()]
    return stream.masked_fill(prompts[:, None, None], torch.nan)


def run(config_file: str, *ports: str) -> None:
    for layout, port in zip(LAYOUTS, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        config = load_config(config_file, layout)
        with distributed(config.parallel, seed=0, device=torch.device("cpu"), world=detect_world()):
            for stage in STAGES:
                engine, rows = start_with_random_gate(config, stage)
                plain = measure(engine, rows)
                if engine.model.gate is not None:
                    heads = [f"specialists.{index}.output_layer.weight" for index in range(3)]
                    wanted = ["sums", "gate.fc1.weight", *(heads if stage == "joint" else [])]
                    assert all(plain[name].any() for name in wanted)
                    spoil_prompts(engine.model)
                for name, value in measure(engine, rows).items():
                    assert torch.equal(value, plain[name]), (layout, stage, name)


if __name__ == "__main__":
    run(*sys.argv[1:])
