#!/usr/bin/env python3
"""The chunked mixture loss: its time over the bare matrix products that it must do, and its memory.

Three things are timed in turns in one process, medians are shown:

  loss      `mixture_cross_entropy` with its backward: losses of the mixture and of each specialist, all gradients,
            those of the heads added into float32 buffers, as in training (for warm-up that of the weights alone)
  matmuls   the products that it cannot do without, over all tokens at once and into memory that is there: K of the
            logits, and in joint training K of dh and K of dW
  dense     the plain formula, with the logits of all tokens, and autograd

Memory is the peak of the process's resident set beyond what it held before the call: gradients of hidden states and the
chunk for `loss`, logits for `dense`. It must not grow with tokens and vocabulary beyond the chunk.

`cut-cross-entropy`'s PyTorch path is timed too where the package can be imported (it imports Triton, which a machine
without a GPU seldom has): one head of the same total width, which is what a mixture with fixed weights is.

  python benchmarks/mixture_loss.py [--dtype fp32|bf16] [--turns 5] [--threads 2] [--json FILE]
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One size: tokens T, vocabulary rows V, width h of each of K specialists."""

    tokens: int
    vocabulary: int
    hidden: int = 1024
    specialists: int = 3
    stage: str = "joint"


CASES = (
    Case(512, 32000),
    Case(512, 32000, stage="warmup"),
    Case(256, 32000),
    Case(1024, 32000),
    Case(512, 16000),
    Case(512, 64000),
    Case(512, 32000, hidden=512),
)


class Inputs:
    """Hidden states, heads with float32 gradient buffers, weights and targets."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        """At random."""
        generator = torch.Generator().manual_seed(0)
        joint = case.stage == "joint"

        def normal(rows: int) -> torch.Tensor:
            values = torch.randn(rows, case.hidden, generator=generator) * case.hidden**-0.5
            return values.to(dtype).requires_grad_(joint)

        self.hidden = [normal(case.tokens) for _ in range(case.specialists)]
        self.heads = [normal(case.vocabulary) for _ in range(case.specialists)]
        for head in self.heads if joint else []:
            head.main_grad = torch.zeros(head.shape)  # type: ignore[attr-defined]
        scores = torch.randn(case.tokens, case.specialists, generator=generator)
        self.weights = torch.softmax(scores, dim=1).requires_grad_()
        self.targets = torch.randint(case.vocabulary, (case.tokens,), generator=generator)

    def forget(self) -> None:
        """Drops all gradients."""
        for leaf in (*self.hidden, *self.heads, self.weights):
            leaf.grad = None


def loss_of(inputs: Inputs, chunk_mib: int) -> torch.Tensor:
    """Ours, with its backward."""
    from megafuser.fusion.mixture_loss import mixture_cross_entropy

    output = mixture_cross_entropy(
        inputs.hidden,
        inputs.heads,
        inputs.weights,
        inputs.targets,
        shared_vocabulary=inputs.heads[0].shape[0],
        chunk_bytes=chunk_mib * 2**20,
    )
    total = output.fused.sum()
    total.backward()
    return total.detach()


def dense(inputs: Inputs) -> torch.Tensor:
    """The formula over all tokens."""
    logits = sum(
        weight[:, None] * torch.nn.functional.linear(hidden, head).float()
        for weight, hidden, head in zip(inputs.weights.unbind(1), inputs.hidden, inputs.heads, strict=True)
    )
    total = torch.nn.functional.cross_entropy(logits, inputs.targets, reduction="sum")
    total.backward()
    return total.detach()


def bare_products(case: Case, dtype: torch.dtype) -> Callable[[], None]:
    """The matrix products alone."""
    hidden = torch.randn(case.tokens, case.hidden).to(dtype)
    head = torch.randn(case.vocabulary, case.hidden).to(dtype)
    logits = torch.randn(case.tokens, case.vocabulary).to(dtype)
    out = [torch.empty_like(matrix) for matrix in (logits, hidden, head)]

    def run() -> None:
        for _ in range(case.specialists):
            torch.mm(hidden, head.T, out=out[0])
            if case.stage == "joint":
                torch.mm(logits, head, out=out[1])
                torch.mm(logits.T, hidden, out=out[2])

    return run


def cut_cross_entropy(inputs: Inputs) -> Callable[[], Any] | None:
    """The other library's PyTorch path on one head of all specialists' width, or None where it cannot be imported."""
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError:
        return None
    states = torch.cat([hidden.detach() for hidden in inputs.hidden], dim=1).requires_grad_()
    head = torch.cat([head.detach() for head in inputs.heads], dim=1).requires_grad_()
    return lambda: linear_cross_entropy(states, head, inputs.targets, impl="torch_compile", reduction="sum").backward()


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def seconds_of(run: Callable[[], Any]) -> float:
    """Of one call; memory that earlier calls freed is there for it, as in a training step."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peak_of(run: Callable[[], Any]) -> int:
    """The peak of the resident set beyond what it was before the call, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free and not given back would hide what is taken next
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def measure(case: Case, dtype: torch.dtype, turns: int, chunk_mib: int) -> dict[str, Any]:
    """All sides of a case, in turns."""
    inputs = Inputs(case, dtype)
    sides: dict[str, Callable[[], Any]] = {
        "matmuls": bare_products(case, dtype),
        "loss": lambda: loss_of(inputs, chunk_mib),
        "dense": lambda: dense(inputs),
    }
    other = cut_cross_entropy(inputs) if case.stage == "joint" else None
    if other is not None:
        sides["cut-cross-entropy"] = other
    peaks: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name, run in sides.items():  # which warms up, too
        inputs.forget()
        peaks[name] = peak_of(run)
    for _ in range(turns):
        for name, run in sides.items():
            inputs.forget()
            times[name].append(seconds_of(run))
    seconds = {name: statistics.median(every) for name, every in times.items()}
    return {
        **asdict(case),
        "seconds": seconds,
        "over_matmuls": {name: second / seconds["matmuls"] for name, second in seconds.items()},
        "peak_mib": {name: peak / 2**20 for name, peak in peaks.items()},
    }


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk-mib", type=int, default=256, help="memory.loss_chunk_mib")
    parser.add_argument("--json", type=Path, help="write the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from megafuser.runtime.distributed import single_process_cpu

    print(
        "| stage | tokens | vocabulary | h | matmuls, s | loss / matmuls | dense / matmuls | loss, MiB | dense, MiB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    results = []
    with single_process_cpu():
        for case in CASES:
            found = measure(case, DTYPES[options.dtype], options.turns, options.chunk_mib)
            results.append(found)
            ratios, peaks = found["over_matmuls"], found["peak_mib"]
            print(
                f"| {case.stage} | {case.tokens} | {case.vocabulary} | {case.hidden} | "
                f"{found['seconds']['matmuls']:.2f} | {ratios['loss']:.2f} | {ratios['dense']:.2f} | "
                f"{peaks['loss']:.0f} | {peaks['dense']:.0f} |",
                flush=True,
            )
    others = [found["over_matmuls"].get("cut-cross-entropy") for found in results]
    measured_others = ", ".join(f"{ratio:.2f}" for ratio in others if ratio is not None)
    print(f"cut-cross-entropy over matmuls: {measured_others or 'not here (the package or Triton is missing)'}")
    if options.json:
        options.json.write_text(json.dumps({"dtype": options.dtype, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
