"""Fine-tunes SmolLM2 on one domain: all weights, plain PyTorch and transformers.

    python -m examples.smollm2.tune --out OUT --start DIR --domain code|all [--fused-steps] --to DIR

Batches of whole samples, AdamW, a short rise of the learning rate and a cosine to 0. The dev loss is looked at a few
times on the way, and the state with the lowest is kept: so dev chooses how long the fine-tune lasts. At each look the
training itself is written to disk, and goes on from there if it is stopped. With `--fused-steps` it trains on the very
samples of a fused run's steps, both stages, at joint training's rate: on those of its domain, or on all.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from examples.quickstart.samples import DOMAINS, EncodedSample, padded, response_loss
from examples.shared.files import kept_beside
from examples.shared.kept_settings import read_values
from examples.shared.same_data import drawn as drawn_by_fusion
from examples.smollm2.settings import PROMPT, Settings, part_file
from megafuser.checkpoint.manifest import hash_files
from megafuser.runtime.atomic import sync_tree

RISE_STEPS = 5
DEV_BATCH = 8
ALL = "all"
# Samples that are sorted by length, and make the next steps.
WINDOW = 64


def main() -> None:
    """Trains and saves by rename, with training.json beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--start", type=Path, required=True, help="Hugging Face directory to start from")
    parser.add_argument("--domain", choices=(*DOMAINS, ALL), required=True)
    parser.add_argument("--fused-steps", action="store_true", help="train on the domain's samples of the fused run")
    parser.add_argument("--to", type=Path, required=True, help="directory to write; what exists is kept")
    args = parser.parse_args()
    if args.to.exists():
        print(f"{args.to} exists")
        return
    logging.disable_progress_bar()
    settings = Settings(**read_values(args.out / "settings.json"))
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.start)
    domains = DOMAINS if args.domain == ALL else (args.domain,)
    dev = [sample for domain in domains for sample in encode(part_file(args.out, domain, "dev"), tokenizer)]
    if args.fused_steps:
        fusion = {domain: encode(part_file(args.out, domain, "fusion"), tokenizer) for domain in DOMAINS}
        steps, rate = list(drawn_as_fused(fusion, domains, settings)), settings.joint_rate
    else:
        train = [sample for domain in domains for sample in encode(part_file(args.out, domain, "train"), tokenizer)]
        steps, rate = list(drawn(train, settings, settings.seed)), settings.tune_rate
    args.to.parent.mkdir(parents=True, exist_ok=True)
    kept = kept_beside(args.to)
    facts = fit(model, steps, dev, rate, settings, kept, weights_hash(args.start))
    temporary = args.to.with_name(f".{args.to.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    sync_tree(temporary)  # what has its name is whole, after a power cut too
    temporary.rename(args.to)
    kept.unlink(missing_ok=True)


def encode(path: Path, tokenizer: Any) -> list[EncodedSample]:
    """The ids of every sample of a JSONL file (prompt, response, end token), and the prompt's length."""
    samples = []
    for line in map(json.loads, path.read_text("utf-8").splitlines()):
        prompt = tokenizer(PROMPT.format(line["instruction"]), add_special_tokens=False)["input_ids"]
        response = tokenizer(line["response"], add_special_tokens=False)["input_ids"]
        samples.append((prompt + response + [tokenizer.eos_token_id], len(prompt)))
    return samples


def drawn(samples: Sequence[EncodedSample], settings: Settings, seed: int) -> Iterator[list[EncodedSample]]:
    """The samples of each step, of similar lengths, in a new order in each pass.

    Args:
        samples: to train on.
        settings: samples of a step, and the tokens, prompts included, that are never exceeded.
        seed: of the order.
    """
    random, seen = Random(seed), 0
    while True:
        order = random.sample(list(samples), len(samples))
        for step in _of_similar_lengths(order, settings.tune_samples, random):
            seen += sum(len(ids) for ids, _ in step)
            if seen > settings.tune_tokens:
                return
            yield step


def drawn_as_fused(
    fusion: Mapping[str, list[EncodedSample]], domains: Sequence[str], settings: Settings
) -> Iterator[list[EncodedSample]]:
    """The samples of each step of both stages of the fused run, shortest first.

    Args:
        fusion: the samples for fusion of all domains.
        domains: those whose samples are wanted.
        settings: steps, samples of a step, seed.
    """
    names, sizes = list(fusion), [len(own) for own in fusion.values()]
    for pairs in drawn_by_fusion(settings, settings.seed, sizes, ("warmup", "joint")):
        step = [fusion[names[domain]][sample] for domain, sample in pairs if names[domain] in domains]
        yield sorted(step, key=lambda sample: len(sample[0]))


def _of_similar_lengths(order: list[EncodedSample], size: int, random: Random) -> Iterator[list[EncodedSample]]:
    """The steps of one pass: samples are sorted within each window, so that little is padding."""
    for window in range(0, len(order), WINDOW):
        near = sorted(order[window : window + WINDOW], key=lambda sample: len(sample[0]))
        steps = [near[start : start + size] for start in range(0, len(near), size)]
        yield from random.sample(steps, len(steps))


def fit(
    model: Any,
    steps: Sequence[Sequence[EncodedSample]],
    dev: Sequence[EncodedSample],
    rate: float,
    settings: Settings,
    kept: Path | None = None,
    start: str = "",
) -> dict[str, Any]:
    """Trains in place; in the end the model has the state with the lowest dev loss of all looks.

    Args:
        model: what to start from.
        steps: the samples of each step.
        dev: what the state is chosen by.
        rate: the learning rate's peak.
        settings: how many looks, and what tells this training from others.
        kept: file that the training is kept in at each look, and goes on from with the same results.
        start: hash of what `model` was loaded from; it, too, tells this training from others.

    Returns:
        What training.json says: tokens, seconds, the looks, and after which step the state is.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    looks = {round(len(steps) * (index + 1) / settings.tune_looks) for index in range(settings.tune_looks)}
    key = hashlib.sha256(repr((settings, rate, start, steps)).encode()).hexdigest()
    content = torch.load(kept, weights_only=True) if kept and kept.exists() else {}
    if content.get("key") == key:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        curve, state = content["curve"], content["best"] or deepcopy(content["model"])
        print(f"going on after step {curve[-1]['step']}", flush=True)
    else:
        if content:
            print(f"{kept} is of another start, other settings or samples: not used; beginning at step 0", flush=True)
        curve = [{"step": 0, "tokens": 0, "response_tokens": 0, "seconds": 0.0, "dev": mean_loss(model, dev)}]
        state = deepcopy(model.state_dict())
    del content
    now, began = dict(curve[-1]), time.monotonic() - curve[-1]["seconds"]
    done = now["step"]
    for index, samples in enumerate(tqdm(steps[done:], unit="step", mininterval=10), done):
        model.train()
        cosine = 0.5 + 0.5 * math.cos(math.pi * index / len(steps))
        optimizer.param_groups[0]["lr"] = rate * min((index + 1) / RISE_STEPS, cosine)
        count = sum(len(ids) - prompt for ids, prompt in samples)
        for first in range(0, len(samples), settings.tune_samples):
            loss, _ = response_loss(model, padded(samples[first : first + settings.tune_samples]))
            (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        now["tokens"] += sum(len(ids) for ids, _ in samples)
        now["response_tokens"] += count
        if index + 1 in looks:
            now |= {"step": index + 1, "dev": mean_loss(model, dev), "seconds": round(time.monotonic() - began, 1)}
            better = now["dev"] < min(look["dev"] for look in curve)
            curve.append(dict(now))
            print(now, flush=True)
            if better:
                state = deepcopy(model.state_dict())
            if kept:
                # the best state is this one, or an earlier one that must be kept too
                best = None if better else state
                _keep({"key": key, "model": model.state_dict(), "best": best, "curve": curve}, optimizer, kept)
    model.load_state_dict(state)
    return {
        "steps": len(steps),
        "tokens": now["tokens"],
        "response_tokens": now["response_tokens"],
        "kept": min(curve, key=lambda look: look["dev"]),
        "lr": rate,
        "curve": curve,
        "seconds": now["seconds"],
    }


def weights_hash(directory: Path) -> str:
    """Of the weights and the configuration of a Hugging Face directory, whatever else is in it and wherever it is."""
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise FileNotFoundError(f"{directory} has no weights (*.safetensors)")
    hashes = hash_files(directory, [*names, "config.json"])
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _keep(content: dict[str, Any], optimizer: torch.optim.Optimizer, kept: Path) -> None:
    """Writes all that the rest of the training depends on, by rename."""
    temporary = kept.with_name(f"{kept.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(content | {"optimizer": optimizer.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(kept)


@torch.inference_mode()
def mean_loss(model: Any, samples: Sequence[EncodedSample]) -> float:
    """Mean cross-entropy over all response tokens, in nats."""
    model.eval()
    order = sorted(samples, key=lambda sample: len(sample[0]))
    batches = [padded(order[start : start + DEV_BATCH]) for start in range(0, len(order), DEV_BATCH)]
    pairs = [response_loss(model, batch) for batch in batches]
    return sum(loss.item() for loss, _ in pairs) / sum(count for _, count in pairs)


if __name__ == "__main__":
    main()
