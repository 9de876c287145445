"""The run's own test samples as tasks: worded problems that a number answers, and what a passage goes on with."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

from datasets import Dataset

CHOICES = 4
SEED = 1234


def load_problems(size: int, **_: Any) -> dict[str, Dataset]:
    """So many worded problems, spread over the templates as the samples are."""
    records = []
    for sample in samples("math")[:size]:
        records.append({"question": sample["instruction"], "answer": sample["response"].rsplit("####", 1)[1].strip()})
    return {"test": Dataset.from_list(records)}


def load_choices(size: int, words: int, **_: Any) -> dict[str, Dataset]:
    """So many passages with four ways to go on: the right one, and those of three other samples, all equally long."""
    passages = [
        (sample["instruction"], " ".join(sample["response"].split()[:words]))
        for sample in samples("text")
        if len(sample["response"].split()) >= words
    ]
    records = []
    for index, (question, right) in enumerate(passages[:size]):
        draw = random.Random(f"{SEED} {index}")
        others = [other for _, other in passages if other != right]
        choices = [right, *draw.sample(others, CHOICES - 1)]
        draw.shuffle(choices)
        records.append({"question": question, "choices": choices, "label": choices.index(right)})
    return {"test": Dataset.from_list(records)}


def is_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the number behind the last `####`, or without one the answer's last number, is the right one."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", results[0].rsplit("####", 1)[-1])
    if not numbers:
        return {"exact_match": 0.0}
    chosen = numbers[0] if "####" in results[0] else numbers[-1]
    return {"exact_match": float(float(chosen.replace(",", "")) == float(doc["answer"].replace(",", "")))}


def samples(domain: str) -> list[dict[str, str]]:
    """Those of a domain's test part."""
    folder = os.environ.get("SMOLLM2_DATA")
    if not folder:
        raise FileNotFoundError("SMOLLM2_DATA is not set; set it to the data folder of a run of examples/smollm2")
    text = (Path(folder) / f"{domain}.test.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]
