"""Short arithmetic solved by generating: the problems, a single model's greedy answers, and when one is right."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.quickstart.samples import PROMPTS
from examples.quickstart.tokenizer import SHARED_VOCABULARY

MAX_NEW_TOKENS = 10
BATCH = 50


def read_problems(out: Path) -> list[dict[str, str]]:
    """Lines of `prompt`, `answer` and `kind`."""
    return [json.loads(line) for line in (out / "data" / "problems.jsonl").read_text("utf-8").splitlines()]


@torch.inference_mode()
def solve(model: Any, tokenizer: Any, template: str, problems: Sequence[Mapping[str, str]]) -> list[str]:
    """Greedy answers by Hugging Face's own `generate`, over the shared vocabulary, in the order of the problems."""
    answers: list[str] = []
    beyond = list(range(SHARED_VOCABULARY, model.config.vocab_size)) or None
    for start in range(0, len(problems), BATCH):
        prompts = [PROMPTS[template].format(one["prompt"]) for one in problems[start : start + BATCH]]
        encoded = tokenizer(prompts)["input_ids"]
        width = max(map(len, encoded))
        ids = torch.tensor([[tokenizer.eos_token_id] * (width - len(own)) + own for own in encoded])
        mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in encoded])
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            suppress_tokens=beyond,
            pad_token_id=tokenizer.eos_token_id,
        )
        answers += tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
    return answers


def exact_matches(answers: Sequence[str], problems: Sequence[Mapping[str, str]]) -> list[bool]:
    """Whether each answer is the right number and nothing else, white space around it aside."""
    if len(answers) != len(problems):
        raise ValueError(f"{len(answers)} answers to {len(problems)} problems")
    return [answer.strip() == one["answer"] for answer, one in zip(answers, problems, strict=True)]


def right_by_kind(answers: Sequence[str], problems: Sequence[Mapping[str, str]]) -> dict[str, list[bool]]:
    """For each kind of problem whether each answer was right, in the order of the problems."""
    right = exact_matches(answers, problems)
    kinds = sorted({one["kind"] for one in problems})
    return {kind: [own for own, one in zip(right, problems, strict=True) if one["kind"] == kind] for kind in kinds}


def read_completions(path: Path) -> list[str]:
    """The answers in what `megafuser generate --out` wrote."""
    return [json.loads(line)["completion"] for line in path.read_text("utf-8").splitlines()]
