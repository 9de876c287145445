#!/usr/bin/env python3
"""Fused decoding against the K specialists one after the other under Hugging Face `generate`, each with its cache.

A fused step is K cached forwards, a gate and a mixture: it should cost what the K forwards cost. Both sides have random
Llamas of the same shape, greedy decoding that no end id stops, and all cores; each measurement is a process of its own,
and sides take turns. The time per token is that of the tokens after the first; the time to the first one is that of a
prompt of `--prompt` tokens, read alone. Templates make our views differ in length, as in use.

  python benchmarks/decode.py [--layers 30] [--hidden 576] [--tokens 24] [--turns 3] [--dtype fp32] [--json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fusion_case import GATE_HIDDEN, TEMPLATE_TOKENS, Case, card_of, randomize, threads  # noqa: E402

GOALS = {"per_token_1": 1.1, "first_token": 1.1, "batch_8_over_1": 2.5}
SHORT = 64  # tokens of the prompts whose continuation is timed


def _ids(count: int, seed: int, vocabulary: int) -> list[int]:
    return torch.randint(3, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def ours(case: Case, prompt: int, tokens: int) -> dict[str, float]:
    """Seconds per step of 1 and of 8 requests, and to the first token of a long prompt."""
    from megafuser.config.compute import ParallelConfig, PrecisionConfig
    from megafuser.config.gate import GateConfig
    from megafuser.fusion.model import build_fused_model
    from megafuser.inference.engine import Engine
    from megafuser.inference.request import Call, Request
    from megafuser.inference.scheduler import Scheduler
    from megafuser.runtime.distributed import single_process_cpu

    class NoText:
        """Texts are not what is timed."""

        def decode(self, *_: Any, **__: Any) -> str:
            return ""

    with single_process_cpu():
        model = build_fused_model(
            {name: card_of(case) for name in case.names},
            parallel=ParallelConfig(),
            precision=PrecisionConfig(dtype=case.dtype),  # type: ignore[arg-type]
            backend="torch",
            gate=GateConfig(GATE_HIDDEN),
            shared_vocabulary=case.vocabulary,
            seed=case.seed,
            cached=True,
        )
        randomize(model, case.seed)
        positions = 8 * (SHORT + 64 + tokens) + prompt + 128
        engine = Engine(model, limit=4096, cache_bytes=_cache_bytes(model, positions), device=torch.device("cpu"))

        def run(count: int, length: int, new: int) -> list[float]:
            scheduler = Scheduler(engine, max_running=count, step_positions=4096)
            for seed in range(count):
                views = tuple(
                    tuple(_ids(length + TEMPLATE_TOKENS[k % len(TEMPLATE_TOKENS)], seed, case.vocabulary))
                    for k in range(case.specialists)
                )
                call = Call(prompts=views, max_tokens=new, ignores_end=True)
                scheduler.add(Request(call, tokenizer=NoText(), end_id=-1))
            seconds = []
            while not scheduler.is_idle:
                started = time.perf_counter()
                scheduler.step()
                seconds.append(time.perf_counter() - started)
            return seconds

        run(1, SHORT, 3)
        found = {f"per_token_{count}": statistics.median(run(count, SHORT, tokens)[1:]) for count in (1, 8)}
        return found | {"first_token": min(run(1, prompt - max(TEMPLATE_TOKENS), 1)[0] for _ in range(2))}


def _cache_bytes(model: Any, positions: int) -> int:
    from megafuser.inference.cache import bytes_per_position

    return bytes_per_position(model) * positions


def huggingface(case: Case, prompt: int, tokens: int) -> dict[str, float]:
    """The same, of K models, added up."""
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype]
    settings = {key: value for key, value in case.huggingface().items() if key not in ("dtype", "architectures")}
    total = {"per_token_1": 0.0, "per_token_8": 0.0, "first_token": 0.0}
    for k in range(case.specialists):
        torch.manual_seed(k)
        model = LlamaForCausalLM._from_config(LlamaConfig(**settings), dtype=dtype, attn_implementation="sdpa").eval()
        more = TEMPLATE_TOKENS[k % len(TEMPLATE_TOKENS)]

        def seconds(count: int, length: int, new: int, model: Any = model, more: int = more) -> float:
            ids = torch.tensor([_ids(length + more, seed, case.vocabulary) for seed in range(count)])
            settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            started = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            return time.perf_counter() - started

        seconds(1, SHORT, 3)
        for count in (1, 8):
            total[f"per_token_{count}"] += (seconds(count, SHORT, tokens) - seconds(count, SHORT, 1)) / (tokens - 1)
        total["first_token"] += min(seconds(1, prompt - max(TEMPLATE_TOKENS), 1) for _ in range(2))
        del model
    return total


def main() -> None:
    """Both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of the long prompt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each response")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--side", choices=("ours", "huggingface"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    case = Case(layers=options.layers, hidden=options.hidden, vocabulary=options.vocabulary, dtype=options.dtype)
    if options.side:
        threads(len(os.sched_getaffinity(0)))
        side = ours if options.side == "ours" else huggingface
        with torch.inference_mode(options.side == "huggingface"):
            print(json.dumps(side(case, options.prompt, options.tokens)))
        return
    runs: dict[str, list[dict[str, float]]] = {"huggingface": [], "ours": []}
    for _ in range(options.turns):
        for side_name, own in runs.items():
            command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--side", side_name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            own.append(json.loads(output.splitlines()[-1]))
    medians = {name: {key: statistics.median(run[key] for run in own) for key in own[0]} for name, own in runs.items()}
    print("| | Hugging Face, K in turn, s | fused, s | ratio |\n|---|---:|---:|---:|")
    for key, words in (
        ("per_token_1", "a token, batch 1"),
        ("per_token_8", "a step of 8"),
        ("first_token", f"first token, {options.prompt} of prompt"),
    ):
        theirs, own = medians["huggingface"][key], medians["ours"][key]
        print(f"| {words} | {theirs:.4f} | {own:.4f} | {own / theirs:.2f} |")
    growth = {name: own["per_token_8"] / own["per_token_1"] for name, own in medians.items()}
    print(f"| step of 8 over batch 1 | {growth['huggingface']:.2f} | {growth['ours']:.2f} | |")
    if options.json:
        options.json.write_text(json.dumps({"case": case.to_json(), "runs": runs, "goals": GOALS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
