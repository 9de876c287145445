"""Builds the quickstart's data: {text,code,math}.{train,valid}.jsonl and the tokenizer trained on them.

python -m examples.quickstart.make_data --out examples/quickstart/out/data
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from examples.quickstart.sources import Sample, code_samples, download, math_samples, text_samples
from examples.quickstart.tokenizer import train_tokenizer

VALID_PERCENT = {"text": 6, "code": 8, "math": 15}
VALID_SAMPLES = 224
MIN_VALID_SAMPLES = 200
MIN_VALID_TOKENS = 10_000
# About 300 tokens: a few samples fit into a row.
MAX_CHARACTERS = 900
TOKENIZER_CHARACTERS = 800_000


def main() -> None:
    """Writes everything into a temporary directory, checks it, and renames it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write; what exists is kept")
    parser.add_argument("--downloads", type=Path, help="where the wheels are kept (default: beside --out)")
    args = parser.parse_args()
    if args.out.exists():
        print(f"{args.out} exists")
        return
    wheels = download(args.downloads or args.out.parent / "downloads")
    sources = {"text": text_samples(wheels), "code": code_samples(wheels), "math": math_samples(wheels)}
    split = {domain: split_samples(samples, VALID_PERCENT[domain]) for domain, samples in sources.items()}
    tokenizer = train_tokenizer(text for train, _ in split.values() for text in tokenizer_texts(train))
    temporary = args.out.with_name(f".{args.out.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        tokenizer.save(str(temporary / "tokenizer.json"))
        for domain, (train, valid) in split.items():
            tokens = {}
            for part, samples in (("train", train), ("valid", valid)):
                write_samples(temporary / f"{domain}.{part}.jsonl", samples, domain)
                encodings = tokenizer.encode_batch([sample.response for sample in samples], add_special_tokens=False)
                tokens[part] = sum(len(encoding.ids) + 1 for encoding in encodings)
            print(
                f"{domain}: {len(train):,} training samples ({tokens['train']:,} response tokens), "
                f"{len(valid):,} for validation ({tokens['valid']:,})"
            )
            if len(valid) < MIN_VALID_SAMPLES or tokens["valid"] < MIN_VALID_TOKENS:
                sys.exit(
                    f"make_data: error: {domain} has {len(valid)} validation samples with {tokens['valid']} response "
                    f"tokens, and at least {MIN_VALID_SAMPLES} with {MIN_VALID_TOKENS} are needed; raise VALID_PERCENT"
                )
        temporary.rename(args.out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def split_samples(samples: Iterable[Sample], valid_percent: int) -> tuple[list[Sample], list[Sample]]:
    """Splits into training and at most `VALID_SAMPLES` validation samples, see `split_parts`."""
    train, valid = split_parts(samples, [valid_percent])
    return train, valid[:VALID_SAMPLES]


def split_parts(
    samples: Iterable[Sample], held_out_percents: Sequence[int], most_characters: int = MAX_CHARACTERS
) -> list[list[Sample]]:
    """Splits by the hash of a sample's group, and keeps content that a later part has out of the parts before it.

    Args:
        samples: of one domain.
        held_out_percents: percent of the groups that each part after training gets.
        most_characters: of instruction and response; longer samples are left out.

    Returns:
        Training samples, then each held-out part, all in the order of their contents' hashes; no instruction twice,
        and no normalized instruction or response in two parts.
    """
    seen: set[str] = set()
    parts: list[list[Sample]] = [[] for _ in range(len(held_out_percents) + 1)]
    for sample in sorted(samples, key=lambda sample: _hash(sample.instruction + "\0" + sample.response)):
        normalized = normalize(sample.instruction)
        too_long = len(sample.instruction) + len(sample.response) > most_characters
        if normalized in seen or too_long or not normalized or not sample.response.strip():
            continue
        seen.add(normalized)
        parts[part_of_group(sample.group, held_out_percents)].append(sample)
    held_out: set[str] = set()
    for index in reversed(range(len(parts))):
        parts[index] = [s for s in parts[index] if not {normalize(s.instruction), normalize(s.response)} & held_out]
        held_out |= {normalize(part) for sample in parts[index] for part in (sample.instruction, sample.response)}
    return parts


def part_of_group(group: str, held_out_percents: Sequence[int]) -> int:
    """Index of the part that a group belongs to; 0 is training."""
    place, end = int(_hash(normalize(group)), 16) % 100, 0
    for index, percent in enumerate(held_out_percents, 1):
        end += percent
        if place < end:
            return index
    return 0


def tokenizer_texts(samples: list[Sample]) -> Iterable[str]:
    """The domain's share of the text that the tokenizer is trained on: as much of each domain."""
    characters = 0
    for sample in samples:
        if characters > TOKENIZER_CHARACTERS:
            return
        characters += len(sample.instruction) + len(sample.response)
        yield sample.instruction
        yield sample.response


def write_samples(path: Path, samples: list[Sample], domain: str) -> None:
    """Writes a JSONL file of instructions, responses and ids."""
    with path.open("w", encoding="utf-8") as file:
        for index, sample in enumerate(samples):
            line = {"instruction": sample.instruction, "response": sample.response, "id": f"{domain}-{index}"}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def normalize(text: str) -> str:
    """Lower case, and one space between words."""
    return " ".join(text.lower().split())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
