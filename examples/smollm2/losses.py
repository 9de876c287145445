"""Cross-entropy of one Hugging Face model on the test samples, by plain transformers code, as the report measures it.

    python examples/smollm2/losses.py --out OUT --model DIR --to FILE.json

Writes for each domain the sum of the cross-entropy of each sample and its number of response tokens, in nats.
"""

import argparse
import json
from pathlib import Path

import torch
from same_data import padded
from samples import DOMAINS, response_loss
from scheduler import write_by_rename
from smollm2_settings import part_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from tune import encode


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
        pairs = [response_loss(model, padded([sample])) for sample in samples]
        results[domain] = {"sums": [loss.item() for loss, _ in pairs], "tokens": [count for _, count in pairs]}
    write_by_rename(args.to, json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
