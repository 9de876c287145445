"""Fine-tunes one specialist on all domains, on as many response tokens as a fused run went through in its stages.

    python examples/baselines/finetune.py --config CONFIG --specialists DIR --report JSON --checkpoint DIR … --out DIR

The best single specialist by the report, in plain PyTorch, with the joint stage's learning rate, cosine, betas and
clipping, on batches with as many samples of each domain as a step of the joint stage has.
"""

import argparse
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from megafuser.checkpoint.specialist_sources import sources_from_config
from megafuser.config.load import load_config
from megafuser.config.run_directory import RunDirectory, step_number
from megafuser.config.schema import RunConfig
from megafuser.data.cache.loading import load_data
from megafuser.data.tokenization import load_tokenizers
from megafuser.data.tokenized import TokenizedDomain

Sample = tuple[TokenizedDomain, int]


def main() -> None:
    """Trains and saves by rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="the run's configuration")
    parser.add_argument("--specialists", type=Path, required=True, help="directory of Hugging Face directories")
    parser.add_argument("--report", type=Path, required=True, help="the run's report, which names the specialist")
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="of each stage that counts")
    parser.add_argument("--out", type=Path, required=True)
    args, overrides = parser.parse_known_args()
    logging.disable_progress_bar()
    config = load_config(args.config, overrides)
    name = json.loads(args.report.read_text("utf-8"))["single_specialist"]
    index = [specialist.name for specialist in config.specialists].index(name)
    budget = sum(map(tokens_of_stage, args.checkpoint))
    device = "cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"
    torch.manual_seed(config.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(args.specialists / name, dtype=torch.float32)
    nn.Module.to(model, device)
    steps = batches(training_data(config), config.joint.samples_per_domain, Random(config.seed))
    trained = fit(model, steps, index, budget, config)
    temporary = args.out.with_name(f".{args.out.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(args.specialists / name).save_pretrained(temporary)
    facts = {"specialist": name, "response_tokens": trained, "lr": config.joint.lr}
    (temporary / "finetuned.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    temporary.rename(args.out)


def tokens_of_stage(checkpoint: Path) -> int:
    """The response tokens that a stage's training steps up to a checkpoint went through."""
    stage, step = checkpoint.parent, step_number(checkpoint.name)
    if step is None:
        raise ValueError(f"{checkpoint} is no step's checkpoint")
    lines = map(json.loads, RunDirectory(stage.parent).metrics_file.read_text("utf-8").splitlines())
    train = [line for line in lines if (line["stage"], line["split"]) == (stage.name, "train")]
    return sum(line["response_tokens"] for line in train if line["step"] <= step)


def training_data(config: RunConfig) -> list[TokenizedDomain]:
    """The run's own training samples, from its caches."""
    sources = sources_from_config(config)
    tokenizers = load_tokenizers({source.name: source.huggingface for source in sources})
    rows = {source.name: source.card.vocab_size for source in sources}
    positions = {source.name: source.card.max_position_embeddings for source in sources}
    (train,) = load_data(config, tokenizers, rows, positions, ("train",))
    return train


def batches(domains: list[TokenizedDomain], each: int, random: Random) -> Iterator[list[Sample]]:
    """Steps of `each` samples of every domain, without end; a domain is gone through before it begins again."""

    def shuffled(domain: TokenizedDomain) -> Iterator[Sample]:
        while True:
            yield from ((domain, sample) for sample in random.sample(range(len(domain)), len(domain)))

    streams = [shuffled(domain) for domain in domains]
    while True:
        yield [next(stream) for stream in streams for _ in range(each)]


def fit(model: torch.nn.Module, steps: Iterator[list[Sample]], specialist: int, budget: int, config: RunConfig) -> int:
    """Trains until `budget` response tokens were seen; returns how many they were in the end."""
    settings, optimizer_settings = config.joint, config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=optimizer_settings.betas,
        weight_decay=optimizer_settings.weight_decay,
    )
    seen = 0
    model.train()
    with tqdm(total=budget, unit="tok", unit_scale=True, desc="fine-tuning", mininterval=1.0) as bar:
        while seen < budget:
            share = 0.5 + 0.5 * math.cos(math.pi * seen / budget)
            for group in optimizer.param_groups:
                group["lr"] = settings.min_lr + (settings.lr - settings.min_lr) * share
            count = step(model, next(steps), specialist)
            if optimizer_settings.clip_grad > 0:  # 0 clips nothing
                torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_settings.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            seen += count
            bar.update(count)
    return seen


def step(model: torch.nn.Module, samples: list[Sample], specialist: int) -> int:
    """Gradients of the mean loss over the response tokens, a sample at a time; returns their number."""
    views = [domain.view(sample, specialist) for domain, sample in samples]
    total = sum(len(positions) for _, positions in views)
    device = next(model.parameters()).device
    for ids, positions in views:
        tokens = torch.as_tensor(ids, dtype=torch.long, device=device)
        places = torch.as_tensor(positions, dtype=torch.long, device=device)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, places].float()
        loss = torch.nn.functional.cross_entropy(logits, tokens[places + 1], reduction="sum")
        (loss / total).backward()
    return total


if __name__ == "__main__":
    main()
