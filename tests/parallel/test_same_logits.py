"""One trained run, the same tokens: what training, decoding, evaluation and the exported model say is the same.

The specialists are like the paper's: other vocabularies, θ and templates. One rank, two tensor-parallel and two
pipeline ranks; this file is also what the ranks run.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from megatron.core import parallel_state
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.checkpoint.manifest import read_manifest
from megafuser.checkpoint.specialist_sources import sources_from_checkpoint
from megafuser.cli.main import main
from megafuser.config.load import load_config
from megafuser.conversion.export import export_checkpoint
from megafuser.data.row_building import build_row
from megafuser.data.tokenization import EncoderSpec
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.row import PackedRow
from megafuser.harness.answers import Answers
from megafuser.harness.language_model import FusedLM
from megafuser.inference.open_model import Opening, open_checkpoint
from megafuser.runtime.distributed import distributed
from megafuser.training.checkpoint_contents import load_run_weights
from megafuser.training.session import prepare
from megafuser.training.validation import evaluate_rows
from tests.fused_case import SPECIALISTS, make_case, samples_of, write_config, write_jsonl
from tests.parallel.launch import run_ranks
from tests.ports import free_ports
from tests.reference import PROMPTS
from tests.small_domain import read_samples, tokenize_domain
from tests.unit.inference.case import ask_for_logits

LAYOUTS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2)}
SAMPLES = samples_of("code", 4, offset=70)
TOLERANCE = 1e-4
WIDTH = 384


def trainings(step: Path, tensor: int, pipeline: int) -> list[list[float]]:
    """The losses of all response tokens by training's own rows and forward; of samples, on the last rank only."""
    config = load_config(step / "config.yaml", [f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}"])
    manifest = read_manifest(step)
    sources = sources_from_checkpoint(step, manifest)
    session = prepare(config, sources)
    spec = EncoderSpec(
        templates=tuple(specialist.template for specialist in config.specialists),
        end_id=session.end_id,
        shared_vocabulary=session.shared_vocabulary,
        limit=WIDTH,
        rows=tuple(source.card.vocab_size for source in session.sources),
    )
    samples = read_samples([write_jsonl(step.parent.parent / f"{os.getpid()}.jsonl", SAMPLES)])
    domain = tokenize_domain("any", samples, spec, list(session.tokenizers.values()))
    found: list[list[float]] = []

    def values(loss: MixtureLoss, row: PackedRow) -> torch.Tensor:
        found.append(loss.fused.tolist())
        return loss.fused[:, None]

    with distributed(config.parallel, seed=config.seed, device=session.device, world=session.world):
        chunks = session.build_model()
        load_run_weights(step, manifest, chunks, sources)
        rows = [build_row([domain], np.array([[0, index]]), WIDTH) for index in range(len(SAMPLES))]
        evaluate_rows([chunk.eval() for chunk in chunks], rows, values, domains=1, columns=1)
        # the last stage has them; rank 0 writes all down
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, found if parallel_state.is_pipeline_last_stage() else None)
        dist.barrier()
    return next(one for one in everywhere if one)


def decodings(step: Path, tensor: int, pipeline: int) -> dict[str, Any] | None:
    """Logits of a prompt in one piece and its response token by token, and evaluation's sums; on rank 0."""
    with open_checkpoint(Opening(str(step), tensor, pipeline)) as model, model.engine.following() as leads:
        if not leads:
            return None
        logits, engine = [], model.engine
        for sample in SAMPLES:
            prompts, response = model.prompts.answered(sample["instruction"], sample["response"])
            response = (*response, model.end_id)
            start = engine.extents.take(max(map(len, prompts)) + len(response))
            assert start is not None
            past, ids, own = [0] * len(prompts), list(prompts), []
            for token in response:
                own += [one.logits for one in engine.step([ask_for_logits(start, past, ids, [token])])[0]]
                past = [length + len(new) for length, new in zip(past, ids, strict=True)]
                ids = [(token,)] * len(prompts)
            engine.extents.give_back(start)
            logits.append(own)
        evaluation = FusedLM(model, Answers(None, {}), raw=False, max_running=3)
        requests = [
            Instance("loglikelihood", {}, (sample["instruction"], " " + sample["response"]), index)
            for index, sample in enumerate(SAMPLES)
        ]
        return {"logits": logits, "evaluated": [value for value, _ in evaluation.loglikelihood(requests, True)]}


def exporteds(directory: Path) -> list[tuple[torch.Tensor, list[int]]]:
    """Logits [T, V] at the positions that predict each sample's response, and its ids."""
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype=torch.float32)
    tokenizers = {name: AutoTokenizer.from_pretrained(directory / "specialists" / name) for name in SPECIALISTS}
    found = []
    for sample in SAMPLES:
        response = [*tokenizers["text"](sample["response"], add_special_tokens=False).input_ids, 2]
        ids = {
            name: torch.tensor([[*own(PROMPTS[name].format(instruction=sample["instruction"])).input_ids, *response]])
            for name, own in tokenizers.items()
        }
        assert len({own.shape for own in ids.values()}) == 3
        with torch.no_grad():
            found.append((model(specialist_input_ids=ids).logits[0, -len(response) - 1 : -1], response))
    return found


@pytest.mark.parallel
def test_four_ways_to_the_same_logits(tmp_path: Path) -> None:
    values = make_case(tmp_path, train=4, valid=1) | {"device": "cpu"}
    for stage in ("warmup", "joint"):
        values[stage] = {"steps": 2, "samples_per_domain": 2, "lr": 3e-2 if stage == "warmup" else 3e-3}
        values["evaluation"] = {"interval": 10, "samples_per_domain": 1}
    config = str(write_config(tmp_path / "config.yaml", values))
    assert main(["warmup", "--config", config]) == main(["joint", "--config", config]) == 0
    export_checkpoint(tmp_path / "run", tmp_path / "fused", verify="none")
    step = tmp_path / "run" / "joint" / "step_000002"
    write_all(step, "tp1")
    run_ranks(2, "tests.parallel.test_same_logits", [str(step), *free_ports(4)], timeout=300)
    exported = exporteds(tmp_path / "fused")
    for layout in LAYOUTS:
        found = json.loads((step.parent / f"{layout}.json").read_text())
        for index, (logits, response) in enumerate(exported):
            ours = torch.tensor(found["logits"][index])
            assert float((ours - logits).abs().max()) < TOLERANCE, layout
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="none")
            assert found["trained"][index] == pytest.approx(losses.tolist(), abs=TOLERANCE), layout
            # what the harness asks for has no end id
            assert found["evaluated"][index] == pytest.approx(-float(losses[:-1].sum()), abs=TOLERANCE), layout


def write_all(step: Path, layout: str, ports: Sequence[str] = ()) -> None:
    """Writes what a layout says beside the step; process groups are made twice."""
    tensor, pipeline = LAYOUTS[layout]
    os.environ |= {"MASTER_PORT": ports[0]} if ports else {}
    trained = trainings(step, tensor, pipeline)
    os.environ |= {"MASTER_PORT": ports[1]} if ports else {}
    said = decodings(step, tensor, pipeline)
    if said is not None:
        (step.parent / f"{layout}.json").write_text(json.dumps(said | {"trained": trained}))


if __name__ == "__main__":
    directory, *free = sys.argv[1:]
    torch.set_num_threads(1)
    for number, own_layout in enumerate(("tp2", "pp2")):
        write_all(Path(directory), own_layout, free[2 * number : 2 * number + 2])
