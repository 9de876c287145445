"""Evaluates a single model by plain Hugging Face code: cross-entropies by domain, and problems solved by generating.

    python -m examples.miniature.evaluate_model --out OUT --model DIR --templates text,code --to FILE.json

Writes for each template and part the sum of the cross-entropy of each sample and its number of response tokens, in
nats over the shared vocabulary, and the answers to the problems.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.miniature.models import load
from examples.miniature.problems import read_problems, solve
from examples.miniature.settings import part_file
from examples.quickstart.samples import DOMAINS, IGNORED, EncodedSample, batches, encode
from examples.quickstart.tokenizer import SHARED_VOCABULARY
from examples.shared.files import write_by_rename

BATCH_TOKENS = 8192


def main() -> None:
    """Evaluates on dev and test, and writes the JSON file by rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--templates", required=True, help="specialists whose templates are tried, by comma")
    parser.add_argument("--to", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(args.model)
    model.eval()
    results: dict[str, Any] = {}
    for template in args.templates.split(","):
        results[template] = {
            part: {
                domain: sample_losses(model, encode(part_file(args.out, domain, part), template, tokenizer))
                for domain in DOMAINS
            }
            for part in ("dev", "test")
        }
        results[template]["answers"] = solve(model, tokenizer, template, read_problems(args.out))
    write_by_rename(args.to, json.dumps(results) + "\n")


@torch.inference_mode()
def sample_losses(model: Any, samples: Sequence[EncodedSample]) -> dict[str, list[float]]:
    """For each sample, in order, the sum of its cross-entropy over the shared vocabulary and its response tokens."""
    # `batches` sorts by length alone and stably: so does this
    order = sorted(range(len(samples)), key=lambda index: len(samples[index][0]))
    sums = [0.0] * len(samples)
    tokens: list[float] = [0] * len(samples)
    done = 0
    for batch in batches(list(samples), BATCH_TOKENS):
        chosen = batch.labels != IGNORED
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[chosen]
        logits = model.lm_head(hidden).float()[:, :SHARED_VOCABULARY]
        losses = torch.nn.functional.cross_entropy(logits, batch.labels[chosen], reduction="none").double()
        rows = chosen.nonzero()[:, 0]
        own = torch.zeros(len(batch.ids), dtype=torch.float64).index_add_(0, rows, losses)
        for row, index in enumerate(order[done : done + len(batch.ids)]):
            sums[index], tokens[index] = own[row].item(), int(chosen[row].sum())
        done += len(batch.ids)
    return {"sums": sums, "tokens": tokens}


def mean_loss(model: Any, samples: Sequence[EncodedSample]) -> float:
    """Mean cross-entropy over all response tokens, in nats."""
    model.eval()
    losses = sample_losses(model, samples)
    return sum(losses["sums"]) / sum(losses["tokens"])


if __name__ == "__main__":
    main()
