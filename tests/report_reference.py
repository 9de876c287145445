"""What a report must say, recomputed in float64 from one sample at a time; nothing of megafuser is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

# Per response token of a sample, as `DenseFusion.sample` gives it.
Tokens = Mapping[str, torch.Tensor]
_RESAMPLES, _BINS = 2000, 15


def sample_sums(samples: Sequence[Tokens]) -> np.ndarray:
    """[samples, 4 + K]: tokens, and the sums of the losses of fused, uniform, oracle and each specialist."""
    return np.array(
        [
            [
                len(own["fused"]),
                *(float(own[key].sum()) for key in ("fused", "uniform")),
                float(own["specialists"].min(dim=1).values.sum()),
                *own["specialists"].sum(dim=0).tolist(),
            ]
            for own in samples
        ]
    )


def comparisons(domains: Mapping[str, Sequence[Tokens]], names: Sequence[str], seed: int) -> dict[str, Any]:
    """The fields of domains, `overall` and `mean` that compare, by name."""
    tables = {name: sample_sums(samples) for name, samples in domains.items()}
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(_RESAMPLES):
        draws.append([table[random.integers(0, len(table), len(table))].sum(axis=0) for table in tables.values()])
    sums, drawn = np.array([table.sum(axis=0) for table in tables.values()]), np.array(draws)
    means, drawn_means = sums / sums[:, :1], drawn / drawn[..., :1]
    single = int(means.mean(axis=0)[4:].argmin())
    total, drawn_total = sums.sum(axis=0), drawn.sum(axis=1)
    lines = {name: (means[index], drawn_means[:, index]) for index, name in enumerate(tables)}
    lines["overall"] = total / total[0], drawn_total / drawn_total[:, :1]
    lines["mean"] = means.mean(axis=0), drawn_means.mean(axis=1)
    return {"single_specialist": names[single]} | {
        name: _comparison(value, resampled, names, single) for name, (value, resampled) in lines.items()
    }


def _comparison(value: np.ndarray, draws: np.ndarray, names: Sequence[str], single: int) -> dict[str, Any]:
    best = 4 + int(value[4:].argmin())

    def numbers(of: np.ndarray) -> dict[str, Any]:
        _, fused, uniform, oracle, *_ = of.T
        return {
            "cross_entropy": {"fused": fused, "uniform": uniform, "oracle": oracle}
            | {"specialists": dict(zip(names, of.T[4:], strict=True))},
            "gap_closed": (of.T[best] - fused) / (of.T[best] - oracle),
            "gap_closed_single": (of.T[4 + single] - fused) / (of.T[4 + single] - oracle),
            "minus_best": fused - of.T[best],
            "minus_single": fused - of.T[4 + single],
            "minus_uniform": fused - uniform,
        }

    def ends(of: Any) -> Any:
        if isinstance(of, dict):
            return {key: ends(own) for key, own in of.items()}
        return np.percentile(of, [2.5, 97.5]).tolist()

    found = {key: own if isinstance(own, dict) else float(own) for key, own in numbers(value).items()}
    del found["cross_entropy"]
    return {"best_specialist": names[best - 4], **found, "confidence_interval": ends(numbers(draws))}


def calibration(samples: Sequence[Tokens]) -> dict[str, Any]:
    """Expected calibration error and its bins."""
    confidence = np.concatenate([own["confidence"].numpy() for own in samples])
    correct = np.concatenate([own["correct"].numpy() for own in samples])
    bins, error = [], 0.0
    for index in range(_BINS):
        low, high = index / _BINS, (index + 1) / _BINS
        own = (confidence > low) & (confidence <= high)
        filled = bool(own.any())
        if filled:
            error += own.mean() * abs(correct[own].mean() - confidence[own].mean())
        bins.append(
            {
                "low": low,
                "high": high,
                "tokens": int(own.sum()),
                "confidence": float(confidence[own].mean()) if filled else None,
                "accuracy": float(correct[own].mean()) if filled else None,
            }
        )
    return {
        "expected_calibration_error": float(error),
        "accuracy": float(correct.mean()),
        "confidence": float(confidence.mean()),
        "bins": bins,
    }


def differences(domains: Mapping[str, Sequence[Tokens]]) -> dict[tuple[str, int, int], float]:
    """By domain, sample and token: the fused loss less that of the domain's best specialist."""
    found = {}
    for name, samples in domains.items():
        best = int(sample_sums(samples).sum(axis=0)[4:].argmin())
        for index, own in enumerate(samples):
            for token, value in enumerate((own["fused"] - own["specialists"][:, best]).tolist()):
                found[name, index, token] = value
    return found


def means(tokens: Sequence[Tokens], names: Sequence[str]) -> dict[str, Any]:
    """The means over tokens."""
    fused, uniform, weights, alone = (
        torch.cat([own[key] for own in tokens]) for key in ("fused", "uniform", "weights", "specialists")
    )
    return {
        "samples": len(tokens),
        "response_tokens": len(fused),
        "cross_entropy": {
            "fused": fused.mean().item(),
            "uniform": uniform.mean().item(),
            "oracle": alone.min(dim=1).values.mean().item(),
            "specialists": dict(zip(names, alone.mean(dim=0).tolist(), strict=True)),
        },
        "gate": dict(zip(names, weights.mean(dim=0).tolist(), strict=True)),
        "gate_entropy": -(weights * weights.log()).sum(dim=1).mean().item(),
    }
