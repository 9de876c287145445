#!/usr/bin/env python3
"""A fused training step against the plain loop that a user would write, on the same samples; and against bare matmuls.

The plain loop: three Hugging Face models (SDPA attention), the step's samples as one padded batch (or, with
`--micro-batch`, several, in the order they come), all logits, the gate on the last hidden states, autograd, clipping,
`torch.optim.AdamW`; in warm-up the specialists under `no_grad`, and AdamW over the gate. bf16 is autocast over float32
weights in joint training, since both sides then keep float32 masters, and bf16 weights in warm-up. Both sides start
from the same weights, and in fp32 their first losses must agree to 1e-4. Each measurement is a process of its own: a
step that does not count, then the timed ones; sides alternate. Real tokens are those of all K views.

`of bare matmuls`: useful FLOPs of a step per second (real tokens, heads at response positions) over the rate at which
the same process multiplies matrices of the step's shapes alone, forward and, in joint training, both backward products.

  python benchmarks/fusion_step.py [--dtype fp32|bf16] [--stages joint,warmup] [--turns 2] [--json FILE] [--profile]
  python benchmarks/fusion_step.py --alone --hidden 1536 --layers 2     # without the plain loop
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fusion_case import (  # noqa: E402
    GATE_HIDDEN,
    Case,
    card_of,
    claim_memory,
    made_up_samples,
    memory_gib,
    our_engine,
    packed_rows,
    threads,
    timed,
)

GOALS = {"joint": 2.0, "warmup": 2.5}


def ours(case: Case, stage: str, steps: int, profile: bool) -> dict[str, Any]:
    """Times the engine's steps, then bare products of the same shapes."""
    from megafuser.training.flops import step_flops

    rows, efficiency = packed_rows(case)
    before = memory_gib("VmRSS")
    with our_engine(case, stage) as engine:
        weights = memory_gib("VmRSS")
        losses: list[float] = []

        def step() -> None:
            sums = engine.step(rows).sums
            losses.append(float(sums[:, 0].sum() / sums[:, 1].sum()))

        step()
        seconds = [timed(step) for _ in range(steps)]
        peak = memory_gib()
        if profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
                step()
            print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=sys.stderr)
    flops = step_flops([card_of(case)] * case.specialists, rows, backward=stage == "joint")
    bare = bare_rate(case, rows, backward=stage == "joint")
    return {
        "seconds": seconds,
        "loss": losses[0],
        "peak": peak,
        "before": before,
        "built": weights,
        "tokens": sum(view.used for row in rows for view in row.specialists),
        "efficiency": efficiency,
        "rows": len(rows),
        "gflops": flops / statistics.median(seconds) / 1e9,
        "bare_gflops": bare / 1e9,
    }


def bare_rate(case: Case, rows: list[Any], *, backward: bool) -> float:
    """FLOPs a second of the step's matrix products alone, each timed once after one that does not count."""
    card, dtype = card_of(case), {"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype]
    h, f = case.hidden, card.ffn_hidden_size
    layer = [(h, card.qkv_width), (card.query_width, h), (h, 2 * f), (f, h)]
    shapes = [
        (positions, k, n, times)
        for row in rows
        for view in row.specialists
        for positions, k, n, times in (
            *((view.input_ids.shape[1], k, n, case.layers) for k, n in layer),
            (row.targets.numel(), h, case.vocabulary, 1),
        )
    ]
    seconds = flops = 0.0
    for m, k, n, times in sorted(set(shapes)):
        count = shapes.count((m, k, n, times)) * times
        x, w, g = (torch.randn(size).to(dtype) for size in ((m, k), (n, k), (m, n)))
        products = [lambda x=x, w=w: x @ w.t()]
        if backward:
            products += [lambda g=g, w=w: g @ w, lambda g=g, x=x: g.t() @ x]
        for product in products:
            product()
            seconds += count * min(timed(product) for _ in range(2))
            flops += count * 2.0 * m * k * n
    return flops / seconds


def plain(case: Case, stage: str, steps: int, micro_batch: int) -> dict[str, Any]:
    """Times the loop that a user would write."""
    from megafuser.runtime import cpu_speed

    cpu_speed.keep_freed_memory = lambda: None  # the engine that the weights come from would set it for this process
    models, gate = plain_models(case, stage)
    joint = stage == "joint"
    trained = [p for model in (models if joint else []) for p in model.parameters()] + list(gate.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
    batches = padded_batches(case, micro_batch)
    total = sum(int(batch["targets"].numel()) for batch in batches)
    losses: list[float] = []
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bf16" and joint)
    built = memory_gib("VmRSS")

    def step() -> None:
        optimizer.zero_grad()
        summed = 0.0
        for batch in batches:
            with autocast:
                loss = plain_loss(models, gate, batch, joint) / total
            loss.backward()
            summed += float(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(summed)

    step()
    seconds = [timed(step) for _ in range(steps)]
    tokens = sum(int(mask.sum()) for batch in batches for mask in batch["masks"])
    positions = sum(mask.numel() for batch in batches for mask in batch["masks"])
    return {
        "seconds": seconds,
        "loss": losses[0],
        "peak": memory_gib(),
        "built": built,
        "tokens": tokens,
        "efficiency": tokens / positions,
        "rows": len(batches),
    }


def plain_loss(models: Any, gate: torch.nn.Module, batch: dict[str, Any], joint: bool) -> torch.Tensor:
    """Summed mixture cross-entropy of one padded micro-batch."""
    hidden, logits = [], []
    for model, ids, mask, places in zip(models, batch["ids"], batch["masks"], batch["places"], strict=True):
        with torch.set_grad_enabled(joint):
            out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        hidden.append(out.hidden_states[-1][places])
        logits.append(out.logits[places])
    scores = torch.cat([gate(h.to(gate[0].weight.dtype)) for h in hidden], dim=-1)
    weights = torch.softmax(scores.float(), dim=-1)
    mixed = sum(weights[:, k, None] * z.float() for k, z in enumerate(logits))
    return torch.nn.functional.cross_entropy(mixed, batch["targets"], reduction="sum")


def plain_models(case: Case, stage: str) -> tuple[list[Any], torch.nn.Sequential]:
    """Hugging Face models and a gate with the weights that ours starts from."""
    from transformers import LlamaConfig, LlamaForCausalLM

    gate = torch.nn.Sequential(
        torch.nn.Linear(case.hidden, GATE_HIDDEN), torch.nn.ReLU(), torch.nn.Linear(GATE_HIDDEN, 1)
    )
    dtype = torch.bfloat16 if case.dtype == "bf16" and stage == "warmup" else torch.float32
    own = {key: value for key, value in case.huggingface().items() if key not in ("architectures", "dtype")}
    models = []
    with our_engine(case, "warmup") as engine:
        gate[0].load_state_dict(engine.model.gate.fc1.state_dict())
        gate[2].load_state_dict(engine.model.gate.fc2.state_dict())
        states = [specialist.state_dict() for specialist in engine.model.specialists]
    for state in states:
        config = LlamaConfig(**own, attn_implementation="sdpa")
        model = LlamaForCausalLM(config).to(dtype)
        model.load_state_dict(to_huggingface(case, state))
        for parameter in model.parameters():
            parameter.requires_grad_(stage == "joint")
        models.append(model)
        state.clear()
    return models, gate


def to_huggingface(case: Case, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """megatron-core's weights under Hugging Face's names, for one key-value head to each query head."""
    rows = case.vocabulary
    found = {
        "model.embed_tokens.weight": state["embedding.word_embeddings.weight"][:rows],
        "lm_head.weight": state["output_layer.weight"][:rows],
        "model.norm.weight": state["decoder.final_layernorm.weight"],
    }
    for index in range(case.layers):
        mine, theirs = f"decoder.layers.{index}.", f"model.layers.{index}."
        qkv = state[mine + "self_attention.linear_qkv.weight"].view(-1, 3, 64, case.hidden)
        for part, name in enumerate("qkv"):
            found[f"{theirs}self_attn.{name}_proj.weight"] = qkv[:, part].reshape(-1, case.hidden)
        found[theirs + "self_attn.o_proj.weight"] = state[mine + "self_attention.linear_proj.weight"]
        gate, up = state[mine + "mlp.linear_fc1.weight"].chunk(2)
        found |= {theirs + "mlp.gate_proj.weight": gate, theirs + "mlp.up_proj.weight": up}
        found[theirs + "mlp.down_proj.weight"] = state[mine + "mlp.linear_fc2.weight"]
        found[theirs + "input_layernorm.weight"] = state[mine + "input_layernorm.weight"]
        found[theirs + "post_attention_layernorm.weight"] = state[mine + "pre_mlp_layernorm.weight"]
    return found


def padded_batches(case: Case, micro_batch: int) -> list[dict[str, Any]]:
    """The step's samples in their order, padded on the right to the longest of each micro-batch."""
    domain = made_up_samples(case)
    batches = []
    for start in range(0, case.samples, micro_batch):
        chosen = range(start, min(start + micro_batch, case.samples))
        batch: dict[str, Any] = {"ids": [], "masks": [], "places": []}
        for k in range(case.specialists):
            views = [domain.view(sample, k) for sample in chosen]
            longest = max(len(ids) for ids, _ in views)
            ids = torch.zeros(len(views), longest, dtype=torch.long)
            mask = torch.zeros(len(views), longest, dtype=torch.long)
            for row, (tokens, _) in enumerate(views):
                ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.from_numpy(tokens), 1
            rows = torch.cat([torch.full((len(places),), row) for row, (_, places) in enumerate(views)])
            columns = torch.cat([torch.from_numpy(places).long() for _, places in views])
            batch["ids"].append(ids)
            batch["masks"].append(mask)
            batch["places"].append((rows, columns))
        batch["targets"] = torch.cat([torch.from_numpy(domain.targets(sample)).long() for sample in chosen])
        batches.append(batch)
    return batches


def measure(case: Case, stage: str, side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--stages", stage, "--case", case.to_json()]
    command += ["--steps", str(options.steps), "--threads", str(options.threads), "--claim", str(options.claim)]
    command += ["--micro-batch", str(options.micro_batch)]
    command += ["--profile"] if options.profile and side == "ours" else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_here(options: argparse.Namespace) -> None:
    """What the process does: prints its numbers as JSON."""
    threads(options.threads)
    case = Case(**json.loads(options.case))
    claim_memory(options.claim)
    if options.side == "ours":
        found = ours(case, options.stages, options.steps, options.profile)
    else:
        found = plain(case, options.stages, options.steps, options.micro_batch or case.samples)
    print(json.dumps(found))


def sides_of(options: argparse.Namespace) -> list[str]:
    """Who takes turns."""
    return ["ours"] if options.alone else ["ours", "plain"]


def compare(case: Case, stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Alternates the sides; medians of all timed steps, the largest of the peaks."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides_of(options)}
    for turn in range(options.turns):
        for side, done in runs.items():
            done.append(measure(case, stage, side, options))
            shown = ", ".join(f"{second:.1f}" for second in done[-1]["seconds"])
            print(f"{stage}, turn {turn + 1} of {options.turns}, {side}: {shown} s", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"stage": stage}
    for side, done in runs.items():
        seconds = statistics.median(second for one in done for second in one["seconds"])
        found[side] = done[0] | {"seconds": seconds, "peak": max(one["peak"] for one in done)}
        found[side]["tokens_per_second"] = found[side]["tokens"] / seconds
    found["of_bare"] = statistics.median(one["gflops"] / one["bare_gflops"] for one in runs["ours"])
    if "plain" in found:
        ours, plain_loop = found["ours"], found["plain"]
        tolerance = 1e-4 if case.dtype == "fp32" else 2e-2
        assert abs(ours["loss"] / plain_loop["loss"] - 1) < tolerance, (ours["loss"], plain_loop["loss"])
        found["faster"] = ours["tokens_per_second"] / plain_loop["tokens_per_second"]
        found["memory"] = ours["peak"] / plain_loop["peak"]
    return found


def table(results: list[dict[str, Any]]) -> list[str]:
    """The table's lines."""
    lines = [
        "| stage | side | s / step | real tokens / s | peak RSS, GiB | real positions | faster | memory | of matmuls |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for found in results:
        for side in [side for side in ("plain", "ours") if side in found]:
            own, last = found[side], ["", "", ""]
            if side == "ours":
                last[2] = f"{100 * found['of_bare']:.0f} %"
                if "plain" in found:
                    last[:2] = [f"{found['faster']:.2f}×", f"{found['memory']:.2f}"]
            cells = [found["stage"], side, f"{own['seconds']:.2f}", f"{own['tokens_per_second']:.0f}"]
            cells += [f"{own['peak']:.2f}", f"{100 * own['efficiency']:.1f} %", *last]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--stages", default="joint,warmup")
    parser.add_argument("--turns", type=int, default=2, help="processes of each side")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--claim", type=float, default=16.0, help="GiB that each process touches first")
    for name in ("hidden", "layers", "vocabulary", "samples", "mean", "width"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Case, name))
    parser.add_argument("--micro-batch", type=int, default=0, help="samples of a micro-batch of the plain loop; 0: all")
    parser.add_argument("--alone", action="store_true", help="only our side, for its share of bare matmuls")
    parser.add_argument("--profile", action="store_true", help="also print where our step's time goes")
    parser.add_argument("--json", type=Path, help="write the numbers")
    for name in ("--side", "--case"):  # how this script calls itself
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_here(options)
        return
    sizes = {name: getattr(options, name) for name in ("hidden", "layers", "vocabulary", "samples", "mean", "width")}
    case = Case(dtype=options.dtype, **sizes)
    results = [compare(case, stage, options) for stage in options.stages.split(",")]
    goals = ", ".join(f"{stage} {GOALS[stage]}×" for stage in options.stages.split(","))
    batch = options.micro_batch or case.samples
    print(f"{case}; plain micro-batches of {batch}; {options.threads} threads.")
    print(f"Goals: {goals}, memory 0.33, of bare matmuls 80 %.\n")
    print("\n".join(table(results)))
    if options.json:
        options.json.write_text(json.dumps({"case": case.to_json(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
