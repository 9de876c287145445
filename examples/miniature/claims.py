"""What the experiment claims, checked seed by seed on the numbers of the tables."""

from collections.abc import Callable, Mapping

from examples.quickstart.samples import DOMAINS
from examples.shared.measures import Measure
from examples.shared.tables import Claim

Rows = Mapping[str, Mapping[int, Measure]]
FUSED = "fused"
MERGES = ("linear", "ties", "dare")


def claims(rows: Rows) -> list[Claim]:
    """All claims that the rows can answer.

    Args:
        rows: by key (`fused`, `warmup`, `specialist-text`, `trained-on-text`, `fine-tuned`, `linear`, …) and seed.
    """
    found = []

    def mean_below(text: str, other: str, required: bool, fused: str = FUSED) -> None:
        seeds = {
            seed: rows[fused][seed].losses["mean"] - measure.losses["mean"]
            for seed, measure in rows.get(other, {}).items()
            if seed in rows[fused]
        }
        if seeds:
            found.append(Claim(text, required, {seed: (gap < 0, gap) for seed, gap in seeds.items()}))

    for domain in DOMAINS:
        found.append(_per_seed(f"below the best specialist on {domain}", True, rows, _best_specialist(rows, domain)))
    for domain in DOMAINS:
        name = f"trained-on-{domain}"
        mean_below(f"mean below the {domain} specialist, trained further", name, True)
    for domain in DOMAINS:
        text = f"below the {domain} specialist, trained further, in its own domain"
        found.append(_per_seed(text, False, rows, _in_domain(rows, f"trained-on-{domain}", domain)))
    for name, title in zip(MERGES, ("linear", "TIES", "DARE"), strict=True):
        mean_below(f"mean below the {title} merge", name, True)
    mean_below("mean below the best specialist fine-tuned on the same data", "fine-tuned", True)
    for domain in DOMAINS:
        mean_below(f"mean below the {domain} specialist fine-tuned on the same data", f"fine-tune-{domain}", False)
    mean_below("mean below the uniform mixture", "uniform", False)
    mean_below("mean below the fused model after warm-up", "warmup", False)
    mean_below("mean below one larger model of the same size from scratch", "larger", False)
    mean_below("mean below BTX", "btx", False)
    mean_below("two stages below joint from the start", "joint-only", False)
    mean_below("balanced below unbalanced", "unbalanced", False)
    mean_below("logits mixed below probabilities mixed", "mixture-probabilities", False, "mixture-logits")
    return found


def _per_seed(text: str, required: bool, rows: Rows, gap: Callable[[int], float]) -> Claim:
    gaps = {seed: gap(seed) for seed in rows[FUSED]}
    return Claim(text, required, {seed: (own < 0, own) for seed, own in gaps.items()})


def _best_specialist(rows: Rows, domain: str) -> Callable[[int], float]:
    def gap(seed: int) -> float:
        best = min(rows[f"specialist-{name}"][seed].losses[domain] for name in DOMAINS)
        return rows[FUSED][seed].losses[domain] - best

    return gap


def _in_domain(rows: Rows, other: str, domain: str) -> Callable[[int], float]:
    def gap(seed: int) -> float:
        return rows[FUSED][seed].losses[domain] - rows[other][seed].losses[domain]

    return gap
