"""Trains the single models that the fused one is made of or compared with.

    python -m examples.miniature.train specialist --out OUT --seed 1 --domain text --to DIR
    python -m examples.miniature.train larger     --out OUT --seed 1 --to DIR
    python -m examples.miniature.train trained-on --out OUT --seed 1 --domain text --start DIR --metrics FILE --to DIR
    python -m examples.miniature.train fine-tune  --out OUT --seed 1 --start DIR --domain text|best --to DIR
    python -m examples.miniature.train btx        --out OUT --seed 1 --start DIR --to DIR

`--start` is the seed's folder of specialists. `--domain best` takes the one with the lowest mean dev loss over the
domains, by the evaluations in `--evaluations`.
"""

import argparse
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.miniature.evaluate_model import mean_loss
from examples.miniature.models import (
    btx_model,
    gate_parameters,
    larger_model,
    load,
    load_specialists,
    parameter_count,
    save,
)
from examples.miniature.settings import COMMON_TEMPLATE, Settings, part_file, read_settings
from examples.miniature.until_flat import Trainer
from examples.quickstart.samples import DOMAINS, encode, padded, response_loss
from examples.quickstart.tokenizer import specialist_tokenizer
from examples.quickstart.train_specialists import Recipe, fit, specialist_config, tokens_of_run
from examples.shared.files import kept_beside
from examples.shared.same_data import drawn

LOOKS = 6


def main() -> None:
    """Trains one model and saves it by rename, with training.json beside its weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("specialist", "larger", "trained-on", "fine-tune", "btx"))
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--domain", choices=(*DOMAINS, "best"))
    parser.add_argument("--start", type=Path, help="folder of specialists")
    parser.add_argument("--evaluations", type=Path, help="folder of the specialists' evaluations, for `best`")
    parser.add_argument("--metrics", type=Path, help="metrics.jsonl of the fused run")
    parser.add_argument("--to", type=Path, required=True, help="directory to write")
    args = parser.parse_args()
    if args.to.exists():
        print(f"{args.to} exists")
        return
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    settings = read_settings(args.out / "settings.json")
    if args.what in ("specialist", "larger"):
        from_scratch(args, settings)
    elif args.what == "trained-on":
        trained_on(args, settings)
    elif args.what == "fine-tune":
        name = best_specialist(args.evaluations) if args.domain == "best" else args.domain
        model, tokenizer = load(args.start / name)
        facts = fine_tune(model, tokenizer, name, args, settings)
        save(model, tokenizer, {"specialist": name, **facts}, args.to)
    else:
        specialists, tokenizers = load_specialists(args.start)
        model = btx_model(specialists)
        facts = fine_tune(model, tokenizers[0], COMMON_TEMPLATE, args, settings)
        save(model, tokenizers[0], facts, args.to)


def from_scratch(args: argparse.Namespace, settings: Settings) -> None:
    """A specialist on its own domain, or the larger model on all, until flat."""
    template = args.domain or COMMON_TEMPLATE
    tokenizer = specialist_tokenizer(args.out / "data" / "tokenizer.json", template)
    if args.what == "specialist":
        domains = [args.domain]
        model = LlamaForCausalLM(specialist_config(args.domain, len(tokenizer), settings.shape))
        most, parts = settings.flat_most_tokens, ["specialist"]
    else:
        # all that the fused model and its specialists learn from
        parts = ["specialist", "fusion"]
        domains = list(DOMAINS)
        model = larger_model(settings, fused_parameters(args.out, settings))
        most = round(settings.larger_factor * settings.flat_most_tokens)
    train, dev = (
        {
            domain: [one for part in own for one in encode(part_file(args.out, domain, part), template, tokenizer)]
            for domain in domains
        }
        for own in (parts, ["dev"])
    )
    kept = kept_beside(args.to)
    trainer = Trainer(model, train, dev, settings, most, Random(args.seed), kept)
    save(model, tokenizer, trainer.run(), args.to)
    kept.unlink(missing_ok=True)


def fused_parameters(out: Path, settings: Settings) -> int:
    """Parameters of the three specialists and the gate."""
    file = out / "data" / "tokenizer.json"
    rows = [len(specialist_tokenizer(file, domain)) for domain in DOMAINS]
    with torch.device("meta"):
        models = [
            LlamaForCausalLM(specialist_config(domain, own, settings.shape))
            for domain, own in zip(DOMAINS, rows, strict=True)
        ]
    return sum(map(parameter_count, models)) + gate_parameters(settings)


def trained_on(args: argparse.Namespace, settings: Settings) -> None:
    """A specialist trained on, on its own domain's samples for fusion, for as many response tokens as the fused run."""
    model, tokenizer = load(args.start / args.domain)
    samples = encode(part_file(args.out, args.domain, "fusion"), args.domain, tokenizer)
    recipe = Recipe(tokens_of_run(args.metrics, args.domain), settings.joint_rate, settings.joint_rate)
    seen = sum(fit(model, samples, recipe, Random(args.seed)))
    save(model, tokenizer, {"response_tokens": seen}, args.to)


def fine_tune(
    model: Any, tokenizer: PreTrainedTokenizerBase, template: str, args: argparse.Namespace, settings: Settings
) -> dict[str, Any]:
    """Trains on the very samples of both stages of the fused run, step by step, with the joint stage's settings."""
    domains = [encode(part_file(args.out, domain, "fusion"), template, tokenizer) for domain in DOMAINS]
    dev = [encode(part_file(args.out, domain, "dev"), template, tokenizer) for domain in DOMAINS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.joint_rate, betas=(0.9, 0.95), weight_decay=0.0)
    steps = list(drawn(settings, args.seed, [len(own) for own in domains], ("warmup", "joint")))
    response_tokens = tokens = 0
    curve = []
    for index, pairs in enumerate(steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = settings.joint_rate * (0.5 + 0.5 * math.cos(math.pi * index / len(steps)))
        batch = padded([domains[domain][sample] for domain, sample in pairs])
        loss, count = response_loss(model, batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        response_tokens += count
        tokens += int((batch.ids != 0).sum())
        if (index + 1) % max(1, len(steps) // LOOKS) == 0:
            line = {"step": index + 1, "tokens": tokens, "dev": sum(mean_loss(model, own) for own in dev) / len(dev)}
            curve.append(line)
            print(line, flush=True)
    return {"steps": len(steps), "tokens": tokens, "response_tokens": response_tokens, "curve": curve}


def best_specialist(evaluations: Path) -> str:
    """The specialist with the lowest mean over the domains on dev, each in its own template."""

    def mean(name: str) -> float:
        dev = json.loads((evaluations / f"specialist-{name}.json").read_text("utf-8"))[name]["dev"]
        return sum(float(sum(own["sums"]) / sum(own["tokens"])) for own in dev.values()) / len(dev)

    return min(DOMAINS, key=mean)


if __name__ == "__main__":
    main()
