"""What the example claims, checked on the numbers of its table."""

from collections.abc import Mapping

from examples.quickstart.samples import DOMAINS
from examples.shared.measures import Measure
from examples.shared.tables import Claim

# How much worse than the best specialist of a domain still counts as no worse.
TOLERANCE = 0.01


def claims(rows: Mapping[str, Measure], seed: int) -> list[Claim]:
    """All claims that the rows can answer; the number with each is the loss less what it must be below.

    Args:
        rows: by key: `fused`, `warmup`, `uniform`, `specialist-text`, …, `trained-on-text`, …
        seed: of the run.
    """
    found = []

    def claim(text: str, gap: float, required: bool) -> None:
        found.append(Claim(text, required, {seed: (gap < 0, gap)}))

    def mean_gap(key: str, other: str) -> float:
        return rows[key].losses["mean"] - rows[other].losses["mean"]

    def best(domain: str) -> float:
        return min(rows[f"specialist-{name}"].losses[domain] for name in DOMAINS)

    for name in DOMAINS:
        claim(f"mean below the {name} specialist alone", mean_gap("fused", f"specialist-{name}"), True)
    for domain in DOMAINS:
        # without that there are no specialists to fuse
        others = min(rows[f"specialist-{name}"].losses[domain] for name in DOMAINS if name != domain)
        own = rows[f"specialist-{domain}"].losses[domain]
        claim(f"before fusing: the {domain} specialist is the best of the three on {domain}", own - others, False)
    for domain in DOMAINS:
        limit = (1 + TOLERANCE) * best(domain)
        text = f"at most {100 * TOLERANCE:g} % above the best specialist on {domain}"
        claim(text, rows["fused"].losses[domain] - limit, True)
    for domain in DOMAINS:
        claim(f"below the best specialist on {domain}", rows["fused"].losses[domain] - best(domain), False)
    claim("mean below the uniform mixture", mean_gap("fused", "uniform"), False)
    claim("mean below the fused model after warm-up", mean_gap("fused", "warmup"), False)
    claim("mean below its own last state", mean_gap("fused", "last"), False)
    for name in DOMAINS:
        text = f"already after warm-up: mean below the {name} specialist alone"
        claim(text, mean_gap("warmup", f"specialist-{name}"), False)
    if "fine-tuned" in rows:
        claim("mean below one model fine-tuned on the same data", mean_gap("fused", "fine-tuned"), False)
    for name in DOMAINS:
        if f"trained-on-{name}" in rows:
            claim(f"mean below the {name} specialist, trained further", mean_gap("fused", f"trained-on-{name}"), False)
    return found
