"""Where two implementations measured the same thing: how far they are apart."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from examples.miniature.measures import Seed
from examples.quickstart.samples import DOMAINS
from examples.shared.files import read_json
from examples.shared.measures import mean_losses

# Of a cross-entropy in nats, on the same weights and samples.
BOUND = 1e-4
# Of the mean over the domains of the test loss, in nats, between the fused run and the dense implementation, each
# trained by itself: their rounding differs, and every step carries that on. 340 steps came to 0.0001; --fast, with
# 20, has less to carry on.
MIXTURE_BOUND = 5e-3


def agreement(seeds: Iterable[Seed], first: Iterable[Seed]) -> dict[str, Any]:
    """Compares `megafuser report` with plain Hugging Face code, and the fused training with the dense one.

    Returns:
        `worst`: the largest difference over the specialists alone, seeds and domains, which must be at most `bound`;
        `same_data`: by seed and model, the response tokens of a fine-tune less those of the fused run on whose
        samples it trained, all of which must be 0;
        `mixture`: by domain, the dense implementation's test loss less the fused run's, each trained by itself, and
        `steps`: the largest difference of a training loss by stage; `flat`: whether each training from scratch ended
        by itself.
    """
    gaps = []
    flat, same_data = {}, {}
    for seed in seeds:
        report = seed.report("balanced", "warmup")["domains"]
        for name in DOMAINS:
            losses = seed.specialist(name).losses
            for domain in DOMAINS:
                gaps.append(abs(report[domain]["cross_entropy"]["specialists"][name] - losses[domain]))
            facts = read_json(seed.path / "specialists" / name / "training.json")
            flat[f"seed {seed.number}, {name}"] = {key: facts[key] for key in ("flat", "steps", "tokens", "dev")}
        fused_tokens = seed.fused("balanced", "joint").response_tokens
        for path in sorted(seed.path.glob("models/*/training.json")):
            if path.parent.name.startswith(("fine-tune", "btx")):
                gap = read_json(path)["response_tokens"] - fused_tokens
                same_data[f"seed {seed.number}, {path.parent.name}"] = gap
    checked: dict[str, Any] = {"worst": _largest(gaps), "bound": BOUND, "flat": flat, "same_data": same_data}
    for seed in first:
        mixture = read_json(seed.path / "evaluations" / "mixture-logits.json")
        fused = seed.fused("balanced", "joint").losses
        checked["mixture"] = {name: value - fused[name] for name, value in mean_losses(mixture["test"]).items()}
        checked["steps"] = _step_differences(seed, mixture["steps"])
        facts = read_json(seed.path / "models" / "larger" / "training.json")
        flat["larger"] = {key: facts[key] for key in ("flat", "steps", "tokens", "dev", "parameters")}
    return checked


def problem(checked: dict[str, Any]) -> str | None:
    """What of `agreement`'s result must end the run; None if all is well."""
    # what is not a number is not within a bound either
    if not checked["worst"] <= checked["bound"]:
        return f"two implementations differ by {checked['worst']:.1e} on the specialists"
    if any(checked["same_data"].values()):
        return f"fine-tunes on other samples than the fused run's, response tokens: {checked['same_data']}"
    if "mixture" in checked and not abs(checked["mixture"]["mean"]) <= MIXTURE_BOUND:
        gap = f"{checked['mixture']['mean']:+.4f}"
        return f"the dense implementation's mean test loss less the fused run's is {gap} nats, beyond {MIXTURE_BOUND}"
    return None


def _step_differences(seed: Seed, steps: list[dict[str, Any]]) -> dict[str, float]:
    metrics = (seed.path / "runs" / "balanced" / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = {}
    for line in map(json.loads, metrics):
        if line["split"] == "train":
            losses[line["stage"], line["step"]] = line["loss"]
    gaps: dict[str, list[float]] = {}
    for line in steps:
        gaps.setdefault(line["stage"], []).append(abs(line["loss"] - losses[line["stage"], line["step"]]))
    return {stage: _largest(own) for stage, own in gaps.items()}


def _largest(gaps: list[float]) -> float:
    """Not a number where one of them is not, unlike `max`."""
    return float(np.max(gaps))


def checks_text(checked: dict[str, Any]) -> list[str]:
    """The checks as Markdown."""
    lines = [
        f"- `megafuser report` and plain Hugging Face code differ by at most {checked['worst']:.1e} nats on the "
        f"specialists alone (bound {checked['bound']:.0e})."
    ]
    differing = [name for name, gap in checked["same_data"].items() if gap]
    if checked["same_data"]:
        lines.append(
            f"- {len(checked['same_data']) - len(differing)} of {len(checked['same_data'])} fine-tunes on the fused "
            f"run's samples went through exactly as many response tokens{''.join(f'; not {one}' for one in differing)}."
        )
    if "mixture" in checked:
        gaps = ", ".join(f"{name} {gap:+.4f}" for name, gap in checked["mixture"].items())
        steps = ", ".join(f"{stage} {gap:.1e}" for stage, gap in checked["steps"].items())
        lines.append(f"- The dense implementation, trained by itself, less the fused run, test loss: {gaps} nats.")
        lines.append(f"- Largest difference of a training step's loss between the two: {steps} nats.")
    lines += [
        "",
        "| trained from scratch | flat before the limit | steps | tokens | dev loss |",
        "|---|---|---:|---:|---:|",
    ]
    for name, own in checked["flat"].items():
        flat = "yes" if own["flat"] else "**no**"
        lines.append(f"| {name} | {flat} | {own['steps']} | {own['tokens']:,} | {own['dev']:.3f} |")
    return lines
