"""Responses with tensor and pipeline parallelism: logits, draws and echoes are those of one rank.

Two processes go through the layouts; this file is also what they run. One rank is compared with Hugging Face in
`tests/unit/inference`.
"""

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megafuser.config.compute import ParallelConfig
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.errors import UserError
from megafuser.inference import engine as engine_module
from megafuser.inference.prompts import Message
from megafuser.inference.request import Call, Request
from megafuser.inference.sampling import SamplingParameters
from megafuser.inference.scheduler import Scheduler
from megafuser.inference.scoring import Continuation, score
from megafuser.runtime.distributed import distributed, single_process_cpu
from megafuser.runtime.world import detect_world
from tests.fused_case import make_hf_specialists
from tests.parallel.launch import run_ranks
from tests.ports import free_ports
from tests.unit.inference.case import END, ask_for_logits, build, make_engine, make_prompts

LAYOUTS = {"tp2": (2, 1), "pp2": (1, 2)}
TEXTS = ("What is the sum of three and four?", "print(i)", "The quick brown fox. " * 4)


def answers(root: Path, parallel: ParallelConfig) -> dict[str, Any] | None:
    """What a model at this layout says; None on the ranks that follow."""
    # ranks may have room for different numbers of positions, as where layers do not divide by the stages
    engine = make_engine(build(root, parallel), cache_bytes=(8 << 20) - 100_000 * dist.get_rank())
    capacities: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(capacities, engine.extents.capacity)
    assert len({*capacities, *(len(keys) for pool in engine._pools for keys in pool.keys.values())}) == 1
    if engine._group is not None:  # a server may have nothing to do for long, while the others wait
        patience = engine._group._get_backend(torch.device("cpu")).options._timeout
        assert patience > datetime.timedelta(days=365)
    encoder = make_prompts(root)
    with engine.following() as leads:
        if not leads:
            return None
        prompts = [encoder.chat([Message("user", text)]) for text in TEXTS]
        raw = encoder.raw("The quick brown fox jumps", 3)
        draws = SamplingParameters(temperature=0.8, top_p=0.9, repetition_penalty=1.2, seed=3)
        calls = [
            *(Call(own, max_tokens=10) for own in prompts),
            Call(prompts[0], max_tokens=10, sampling=draws, top=3),
            Call(raw, max_tokens=4, echo=True),
        ]
        requests = [Request(call, tokenizer=encoder.tokenizer, end_id=END) for call in calls]
        scheduler = Scheduler(engine, max_running=4, step_positions=24)
        for request in requests:
            scheduler.add(request)
        scheduler.run()
        scored = score(engine, [Continuation(prompts[0], (7, 300, 2)), Continuation(raw, (12, 5))], max_running=2)
        start = engine.extents.take(max(map(len, prompts[1])))
        assert start is not None
        (logits,) = engine.step([ask_for_logits(start, (0, 0, 0), prompts[1], (7,))])
        return {
            "responses": [request.response for request in requests],
            "logprobs": [[one.logprob for one in request.predictions] for request in requests],
            "gates": [[one.gate for one in request.predictions] for request in requests],
            "top": [logprob for one in requests[3].predictions for _, logprob in one.top],
            "echoed": [one.logprob for one in requests[4].echoed],
            "scored": [[one.logprob for one in found] for found in scored],
            "logits": logits[0].logits,
        }


@pytest.mark.parallel
def test_layouts_say_what_one_rank_says(tmp_path: Path) -> None:
    for name, hf in make_hf_specialists(tmp_path).items():
        import_specialist(hf, tmp_path / "mcore" / name, verify="none")
    with single_process_cpu():
        expected = answers(tmp_path, ParallelConfig())
    assert expected is not None
    assert len(expected["logits"]) == 320
    run_ranks(2, "tests.parallel.test_decoding", [str(tmp_path), *free_ports(len(LAYOUTS))], timeout=300)
    for layout in LAYOUTS:
        for rank in (0, 1):
            told = (tmp_path / f"{layout} {rank}").read_text()
            assert told == "caches of 0.0078125 GiB have no room beside the weights; give a smaller --cache-gib"
        found = json.loads((tmp_path / f"{layout}.json").read_text())
        assert found.keys() == expected.keys()
        assert found["responses"] == expected["responses"], layout
        for key in found.keys() - {"responses"}:
            for ours, theirs in zip(_flat(found[key]), _flat(expected[key]), strict=True):
                assert ours == pytest.approx(theirs, abs=1e-4), (layout, key)


def without_room(root: Path, parallel: ParallelConfig) -> str:
    """What is raised where one rank has no memory for its caches; on a GPU the others may well have it."""

    def full(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(engine_module, "make_pools", full)
        with pytest.raises(UserError) as caught:
            make_engine(build(root, parallel))
    return str(caught.value)


def _flat(values: Any) -> list[float]:
    return [number for value in values for number in _flat(value)] if isinstance(values, list | tuple) else [values]


if __name__ == "__main__":
    directory, *ports = sys.argv[1:]
    for (layout, (tensor, pipeline)), port in zip(LAYOUTS.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        torch.set_num_threads(1)
        own_parallel = ParallelConfig(tensor=tensor, pipeline=pipeline)
        with distributed(own_parallel, seed=0, device=torch.device("cpu"), world=detect_world()):
            Path(directory, f"{layout} {dist.get_rank()}").write_text(without_room(Path(directory), own_parallel))
            said = answers(Path(directory), own_parallel)
            if said is not None:
                Path(directory, f"{layout}.json").write_text(json.dumps(said))
            dist.barrier()
