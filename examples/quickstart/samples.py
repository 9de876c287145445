"""A specialist's view of a domain's samples: its prompt, the shared response, and batches with little padding."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

DOMAINS = ("text", "code", "math")
# Plain strings on purpose: an implementation of the built-in templates that shares no code with them.
PROMPTS = {
    "text": "User: {}\nAssistant:",
    "code": "[INST] {} [/INST]",
    "math": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{}\n\n### Response:"
    ),
}
IGNORED = -100
EncodedSample = tuple[list[int], int]


class Batch(NamedTuple):
    """Ids and labels, both [B, S], and the number of response tokens.

    Labels are already shifted, and `IGNORED` outside the response.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    response_tokens: int


def encode(path: Path, specialist: str, tokenizer: PreTrainedTokenizerBase) -> list[EncodedSample]:
    """The ids of every sample of a JSONL file as one specialist sees them.

    Returns:
        For each sample its ids (prompt, response, EOS) and the prompt's length.
    """
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    prompts = [PROMPTS[specialist].format(line["instruction"]) for line in lines]
    prompt_ids = tokenizer(prompts)["input_ids"]
    response_ids = tokenizer([line["response"] for line in lines], add_special_tokens=False)["input_ids"]
    return [
        (prompt + response + [tokenizer.eos_token_id], len(prompt))
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]


def batches(samples: list[EncodedSample], max_tokens: int, shuffle: Random | None = None) -> Iterator[Batch]:
    """Batches of samples of similar length, at most `max_tokens` positions each, padding included.

    Yields:
        Batches padded on the right, where causal attention keeps the padding from all before it: no mask is needed.
    """
    order = list(samples)
    if shuffle:
        shuffle.shuffle(order)
    window = 512 if shuffle else len(order)
    groups: list[list[EncodedSample]] = []
    for start in range(0, len(order), window):
        group: list[EncodedSample] = []
        for sample in sorted(order[start : start + window], key=lambda sample: len(sample[0])):
            if group and len(sample[0]) * (len(group) + 1) > max_tokens:
                groups.append(group)
                group = []
            group.append(sample)
        groups.append(group)
    if shuffle:
        shuffle.shuffle(groups)
    for group in groups:
        yield padded(group)


def padded(samples: Sequence[EncodedSample]) -> Batch:
    """One batch, padded on the right, in the given order."""
    width = max(len(ids) for ids, _ in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full((len(samples), width), IGNORED)
    for row, (own, prompt) in enumerate(samples):
        ids[row, : len(own)] = torch.tensor(own)
        labels[row, prompt - 1 : len(own) - 1] = torch.tensor(own[prompt:])
    return Batch(ids, labels, sum(len(own) - prompt for own, prompt in samples))


def response_loss(model: LlamaForCausalLM, batch: Batch, rows: int | None = None) -> tuple[torch.Tensor, int]:
    """Sum of the cross-entropy over a batch's response tokens, and their number; the head sees nothing else.

    With `rows`, only the first so many ids of the vocabulary get probability, as in a fused model's shared vocabulary.
    """
    ids, labels, _ = batch
    chosen = labels != IGNORED
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[chosen]
    logits = model.lm_head(hidden).float()[:, :rows]
    loss = torch.nn.functional.cross_entropy(logits, labels[chosen], reduction="sum")
    return loss, hidden.shape[0]
