"""Made-up domains with the statistics that a cache has, for tests of tables and pages."""

from types import SimpleNamespace
from typing import Any

import numpy as np

SPECIALISTS = ("text", "code")
EDGES = [0, 32, 64, 128]


def counted(name: str, lengths: list[list[int]], responses: list[int], **more: Any) -> SimpleNamespace:
    """A domain of samples with these lengths; `more` takes the place of single statistics."""
    views, own = np.array(lengths, dtype=np.int32), np.array(responses, dtype=np.int32)
    statistics = {
        "domain": name,
        "split": "train",
        "samples": len(own),
        "read": len(own),
        "duplicates": 0,
        "tokens": {specialist: int(views[:, k].sum()) for k, specialist in enumerate(SPECIALISTS)},
        "response_tokens": int(own.sum()),
        "longest_view_tokens": int(views.max(axis=1).sum()),
        "dropped": {},
        "bad": {},
        "truncated": 0,
        "examples": {},
        "sources": [{"name": f"data/{name}.jsonl", "read": len(own), "kept": len(own), "weight": None}],
        "lengths": {
            "edges": EDGES,
            "views": {s: np.histogram(views[:, k], EDGES)[0].tolist() for k, s in enumerate(SPECIALISTS)},
            "responses": np.histogram(own, EDGES)[0].tolist(),
        },
    }
    return _Domain(
        name=name,
        lengths=views,
        response_lengths=own,
        statistics=statistics | more,
        source_sizes=tuple(source["kept"] for source in (statistics | more)["sources"]),
    )


class _Domain(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.response_lengths)


def made_up() -> tuple[list[SimpleNamespace], list[SimpleNamespace]]:
    """Training and validation samples of two domains; the second's sources have weights."""
    text = counted(
        "text",
        [[10, 20], [30, 40], [50, 60], [90, 100]],
        [5, 6, 7, 8],
        read=7,
        duplicates=1,
        truncated=1,
        dropped={"longer than 100 positions <b>": 2},
        bad={"empty response": 1},
        examples={"longer than 100 positions <b>": ["data/text.jsonl:3"], "empty response": ["data/text.jsonl:5"]},
    )
    code = counted(
        "code",
        [[33, 34]] * 5,
        [9] * 5,
        sources=[
            {"name": "data/a.jsonl", "read": 2, "kept": 2, "weight": 3.0},
            {"name": "data/b.jsonl", "read": 3, "kept": 3, "weight": 1.0},
        ],
    )
    return [text, code], [counted("text", [[10, 12]], [4]), counted("code", [[11, 13]], [5])]


def configuration() -> dict[str, Any]:
    """Of these domains, as YAML would give it."""
    return {
        "run_dir": "runs/<x>",
        "specialists": [{"name": name, "checkpoint": name, "template": "plain"} for name in SPECIALISTS],
        "data": {
            "domains": {
                "text": {"train": ["data/text.jsonl"]},
                "code": {
                    "train": [{"path": "data/a.jsonl", "weight": 3.0}, {"path": "data/b.jsonl", "weight": 1.0}],
                    "valid": ["data/code.jsonl"],
                },
            }
        },
        "warmup": {"steps": 10, "samples_per_domain": 2, "lr": 1e-3},
        "joint": {"steps": 400, "samples_per_domain": 5, "lr": 1e-3},
    }
