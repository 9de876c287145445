"""The reference of metrics: what each line of `metrics.jsonl` has, and what the server tells Prometheus."""

from generator.literals import described, named_calls, table, written_keys

_LINE = {
    "stage": "`warmup` or `joint`",
    "split": "`train` or `valid`; validation lines have no timing",
    "step": "optimizer steps of the stage, from 1",
    "grad_norm": "global norm of the gradient before clipping",
    "lr": "the stage's learning rate at this step",
    "grad_norm/{…}": "the gate's (`grad_norm/gate`) or a specialist's part of it; none for what is frozen",
    "lr/{…}": "learning rate of the gate or of a specialist",
    "load_balance": "K · Σ m²; 1 is balanced. Only where the stage has a `load_balance`",
    "samples": "samples of the step or of the validation, over all ranks",
    "tokens": "tokens without padding, of the longest of each sample's K views",
    "response_tokens": "tokens that the loss counts; also by domain, `response_tokens/DOMAIN`",
    "packing_efficiency": "real positions over all positions of the rows",
    "response_tokens/{…}": "by domain",
    "tokens_per_second": "`tokens` over `step_seconds`",
    "step_seconds": "the step's time, data included; without validation and checkpoints",
    "checkpoint_stall_seconds": "how long training stood still for a checkpoint since the step before",
    "tflops_per_device": "useful operations: real tokens, heads at response positions",
    "mfu": "`tflops_per_device` over the device's dense peak, where that is known",
    "peak_memory_gib": "the device's; on a CPU the process's peak resident set",
    "skipped": "1 where nothing was updated, since loss or gradient is not finite",
}
_LOSSES = {
    "loss": "cross-entropy of the fused model: nats, mean over all response tokens of the step",
    "loss/{…}": "over one domain's: `loss/DOMAIN`",
    "{…}/{…}/{…}": "mean gate weight of specialist S on domain D's response tokens, and its own loss there",
}
_INTRODUCTION = """\
# Metrics

This page is made from the code that writes them whenever the site is built. What the numbers are good for is told in
[watching](../watching.md), [the report](../report.md) and [serving](../serving.md).

## `RUN_DIR/metrics.jsonl`

A line per step and per validation, across restarts, no step twice
([metrics.py](../../megafuser/training/metrics.py)).
"""


def page() -> str:
    """The page."""
    lines = described(written_keys("megafuser/training/metrics.py", "training_line"), _LINE, "metrics.jsonl")
    losses = described(written_keys("megafuser/training/metrics.py", "loss_metrics"), _LOSSES, "metrics.jsonl")
    rows = [(_shown(name), meaning) for name, meaning in [*losses, *lines]]
    return "\n".join(
        [
            _INTRODUCTION,
            table(("field", "is"), rows),
            "`loss_spike`, 1 where the loss is far above the steps before, is added by "
            "[metric_sinks.py](../../megafuser/training/metric_sinks.py).\n",
            "## `report.json`\n",
            "Per domain and overall; every field: [the report](../report.md#what-is-in-reportjson).\n",
            "## `/metrics` of the server\n",
            table(("metric", "is"), _prometheus()),
        ]
    )


def _prometheus() -> list[tuple[str, ...]]:
    counters = named_calls("megafuser/serving/metrics.py", ("Counter",))
    others = named_calls("megafuser/serving/metrics.py", ("Histogram", "GaugeMetricFamily"))
    gauges = named_calls("megafuser/serving/server.py", ("add_gauge",))
    if not counters or not others or not gauges:
        raise LookupError("the server's metrics are made elsewhere now; tell docs/generator/metrics.py where")
    # Prometheus's client adds the ending that its conventions ask of a counter.
    return sorted([*((f"{name}_total", text) for name, text in counters), *others, *gauges])


def _shown(name: str) -> str:
    return {"{…}/{…}/{…}": "gate/D/S, specialist_loss/D/S"}.get(name, name.replace("{…}", "NAME"))
