"""Cross-entropy of one Hugging Face model on the test samples, by plain transformers code, as the report measures it.

    python -m examples.smollm2.losses --out OUT --model DIR --to FILE.json

Writes for each domain the sum of the cross-entropy of each sample, in nats, its number of response tokens, and the sum
without the end token: that an answer ends after one sentence here is what a fine-tune learns first.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from examples.quickstart.samples import DOMAINS, IGNORED, Batch, padded
from examples.shared.files import write_by_rename
from examples.smollm2.settings import part_file
from examples.smollm2.tune import encode


@torch.inference_mode()
def main() -> None:
    """Writes the JSON file by rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--to", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    results = {}
    for domain in DOMAINS:
        samples = encode(part_file(args.out, domain, "test"), tokenizer)
        losses = [token_losses(model, padded([sample])) for sample in samples]
        results[domain] = {
            "sums": [own.sum().item() for own in losses],
            "tokens": [len(own) for own in losses],
            "sums_without_end": [own[:-1].sum().item() for own in losses],
        }
    write_by_rename(args.to, json.dumps(results) + "\n")


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """The cross-entropy of each response token of one sample; the last one is the end token's."""
    chosen = batch.labels != IGNORED
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[chosen]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden).float(), batch.labels[chosen], reduction="none")


if __name__ == "__main__":
    main()
