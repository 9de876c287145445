"""Generated mathematics from the package `reasoning-gym`; the same seed gives the same questions."""

import random
import re
from typing import Any

import reasoning_gym
from datasets import Dataset


def load(dataset: str, size: int, seed: int, **_: Any) -> dict[str, Dataset]:
    """So many questions of one of reasoning-gym's data sets, each with a whole number as its answer."""
    questions = reasoning_gym.create_dataset(dataset, size=size, seed=seed)
    return {"test": Dataset.from_list([{"question": one["question"], "answer": one["answer"]} for one in questions])}


def load_choices(dataset: str, size: int, seed: int, **_: Any) -> dict[str, Dataset]:
    """The same with four numbers to choose from."""
    records = []
    for index, one in enumerate(load(dataset, size, seed)["test"]):
        draw = random.Random(f"{seed} {index}")
        right = int(one["answer"])
        wrong = draw.sample([right + distance for distance in range(-10, 11) if distance], 3)
        choices = [right, *wrong]
        draw.shuffle(choices)
        records.append(one | {"choices": [str(choice) for choice in choices], "label": choices.index(right)})
    return {"test": Dataset.from_list(records)}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer's last number is the right one."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", results[0])
    if not numbers:
        return {"exact_match": 0.0}
    return {"exact_match": float(float(numbers[-1].replace(",", "")) == float(doc["answer"]))}
