"""Trains the three tiny specialists, each from scratch on its own domain, and saves them as Hugging Face directories.

    python -m examples.quickstart.train_specialists --data out/data --out out/specialists

With `--continue-from DIR --tokens-from METRICS` it goes on training those specialists, each for as many response tokens
of its own domain as a fused run went through: the baseline that shows what mere training on gives.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from examples.quickstart.samples import DOMAINS, EncodedSample, batches, encode, response_loss
from examples.quickstart.tokenizer import specialist_tokenizer

ROPE_THETA = {"text": 1e4, "code": 1e6, "math": 1e4}
BATCH_TOKENS = 1536


class Recipe(NamedTuple):
    """How long, in response tokens, and how fast one specialist is trained."""

    response_tokens: int
    layer_rate: float
    embedding_rate: float


class Shape(NamedTuple):
    """Size of a specialist's layers."""

    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4


# Embedding and head see each row rarely in so short a training: they take larger steps than the layers. Math has a
# few dozen templates to learn from: trained as hard as the others it knows them by heart and gets worse on new ones.
RECIPES = {
    "text": Recipe(response_tokens=100_000, layer_rate=2e-3, embedding_rate=2e-2),
    "code": Recipe(response_tokens=80_000, layer_rate=2e-3, embedding_rate=2e-2),
    "math": Recipe(response_tokens=50_000, layer_rate=5e-4, embedding_rate=5e-3),
}
SHAPE = Shape()
CONTINUED_FACTOR = 0.25
SEED = 1234


def main() -> None:
    """Trains what is missing in `--out`, all domains at once, one process and one thread each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what make_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="one directory per specialist is made in it")
    parser.add_argument("--continue-from", type=Path, help="directory of specialists to train on")
    parser.add_argument("--tokens-from", type=Path, help="a run's metrics.jsonl: as many tokens of each domain")
    args = parser.parse_args()
    missing = [domain for domain in DOMAINS if not (args.out / domain).exists()]
    if not missing:
        print(f"{args.out} is complete")
        return
    budgets = {domain: RECIPES[domain].response_tokens for domain in missing}
    if args.tokens_from:
        budgets = {domain: tokens_of_run(args.tokens_from, domain) for domain in missing}
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", len(missing))
    workers = [
        context.Process(target=train, args=(domain, args, budgets[domain], done, index), daemon=True)
        for index, domain in enumerate(missing)
    ]
    for worker in workers:
        worker.start()
    with tqdm(total=sum(budgets.values()), unit="tok", unit_scale=True, desc=", ".join(missing)) as bar:
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.5)
            bar.update(sum(done[:]) - bar.n)
        bar.update(sum(done[:]) - bar.n)
    if any(worker.exitcode for worker in workers):
        raise SystemExit("train_specialists: error: a worker failed; see its message above")


def tokens_of_run(metrics: Path, domain: str) -> int:
    """The domain's response tokens that a run's training steps of both stages went through."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    return sum(line[f"response_tokens/{domain}"] for line in lines if line["split"] == "train")


def train(domain: str, args: argparse.Namespace, tokens: int, done: "SynchronizedArray[int]", index: int) -> None:
    """Trains one specialist and saves it with its tokenizer, by rename; `done[index]` counts its response tokens."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    if args.continue_from:
        model = LlamaForCausalLM.from_pretrained(args.continue_from / domain, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(args.continue_from / domain)
    else:
        tokenizer = specialist_tokenizer(args.data / "tokenizer.json", domain)
        model = LlamaForCausalLM(specialist_config(domain, len(tokenizer)))
    samples = encode(args.data / f"{domain}.train.jsonl", domain, tokenizer)
    random = Random(SEED + bool(args.continue_from))
    factor = CONTINUED_FACTOR if args.continue_from else 1.0
    recipe = Recipe(tokens, factor * RECIPES[domain].layer_rate, factor * RECIPES[domain].embedding_rate)
    for step_tokens in fit(model, samples, recipe, random):
        done[index] = min(done[index] + step_tokens, tokens)
    target = args.out / domain
    temporary = target.with_name(f".{domain}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(target)


def specialist_config(domain: str, vocabulary: int, shape: Shape = SHAPE) -> LlamaConfig:
    """The architecture: the same for all but the vocabulary's rows and rope_theta, as in the paper."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA[domain]},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def fit(model: LlamaForCausalLM, samples: list[EncodedSample], recipe: Recipe, random: Random) -> Iterator[int]:
    """Trains with AdamW, linear warm-up and cosine decay; the loss is on response tokens alone.

    Args:
        model: trained in place.
        samples: the domain's training samples, gone through as often as it takes.
        recipe: response tokens to train on, and the learning rates' peaks.
        random: shuffles the samples.

    Yields:
        The response tokens of each step.
    """
    layers = list(model.model.layers.parameters())
    others = [*model.model.embed_tokens.parameters(), *model.model.norm.parameters(), *model.lm_head.parameters()]
    groups = [
        {"params": layers, "lr": recipe.layer_rate},
        {"params": others, "lr": recipe.embedding_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    seen = 0

    def rate(_: int) -> float:
        progress = min(1.0, seen / recipe.response_tokens)
        return min(0.02 + 20 * progress, 0.5 + 0.5 * math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    while seen < recipe.response_tokens:
        for batch in batches(samples, BATCH_TOKENS, random):
            loss, count = response_loss(model, batch)
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seen += batch.response_tokens
            schedule.step()
            yield batch.response_tokens
            if seen >= recipe.response_tokens:
                return


if __name__ == "__main__":
    main()
