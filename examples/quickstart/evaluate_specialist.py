"""Cross-entropy of Hugging Face directories on every domain: an independent check of `megafuser report`.

    python -m examples.quickstart.evaluate_specialist --data out/data --specialists out/specialists --out out/alone.json

Writes {domain: {specialist: mean over the response tokens, natural logarithm}}, each in its own template.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from examples.quickstart.samples import DOMAINS, EncodedSample, batches, encode, response_loss
from examples.quickstart.tokenizer import SHARED_VOCABULARY

BATCH_TOKENS = 8192


def main() -> None:
    """Evaluates the three specialists of one directory and writes the JSON file by rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what make_data.py wrote")
    parser.add_argument("--specialists", type=Path, required=True, help="directory with one specialist per domain")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    logging.disable_progress_bar()
    results: dict[str, dict[str, float]] = {domain: {} for domain in DOMAINS}
    for specialist in DOMAINS:
        directory = args.specialists / specialist
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        for domain in DOMAINS:
            samples = encode(args.data / f"{domain}.valid.jsonl", specialist, tokenizer)
            results[domain][specialist] = cross_entropy(model, samples)
        print(specialist, *(f"{domain} {results[domain][specialist]:.4f}" for domain in DOMAINS), sep="   ")
    temporary = args.out.with_name(f".{args.out.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.rename(args.out)


@torch.inference_mode()
def cross_entropy(model: LlamaForCausalLM, samples: list[EncodedSample]) -> float:
    """Mean cross-entropy over all response tokens, EOS included, in nats."""
    total, tokens = 0.0, 0
    for batch in batches(samples, BATCH_TOKENS):
        loss, count = response_loss(model, batch, SHARED_VOCABULARY)
        total += loss.item()
        tokens += count
    return total / tokens


if __name__ == "__main__":
    main()
