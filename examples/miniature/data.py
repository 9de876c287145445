"""Builds the data: {text,code,math}.{specialist,fusion,dev,test}.jsonl, problems.jsonl and the tokenizer.

    python -m examples.miniature.data --out out

The quickstart's sources, more of them, and arithmetic. Specialists are trained on the first part, and everything that
is made of them on the second, which they have not seen. Dev decides when a training has become flat and which of
several models is taken; test is only ever reported.
"""

import argparse
import json
import re
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from examples.miniature.settings import PARTS, Settings, read_settings
from examples.quickstart.make_data import part_of_group, split_parts, tokenizer_texts, write_samples
from examples.quickstart.sources import Sample, code_samples, download, import_bare, math_samples, text_samples
from examples.quickstart.tokenizer import train_tokenizer
from megafuser.runtime.atomic import sync_tree

# Percent of the groups in dev and in test.
HELD_OUT_PERCENT = {"text": (6, 6), "code": (8, 8), "math": (10, 10)}
SUMS_PERCENT = (5, 5)
# Of math's held-out samples; the rest are worded problems.
SUMS_SHARE = 1 / 3
SUMS_SEED = 1_000_000
PROBLEMS_SEED = 9_000_000
# Small enough that some of a model of this size's answers are right.
SUMS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "basic_arithmetic": {
        **{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        **{"operators": ["+", "-", "*"], "allow_parentheses": False, "allow_negation": False},
    },
}
CLASSES = {
    "chain_sum": ("ChainSumDataset", "ChainSumConfig"),
    "basic_arithmetic": ("BasicArithmeticDataset", "BasicArithmeticDatasetConfig"),
}


def main() -> None:
    """Writes everything into a temporary directory and renames it to `--out`/data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the run's output directory")
    parser.add_argument("--downloads", type=Path, required=True, help="where the wheels are kept")
    args = parser.parse_args()
    target = args.out / "data"
    if target.exists():
        print(f"{target} exists")
        return
    settings = read_settings(args.out / "settings.json")
    wheels = download(args.downloads)
    parts = domain_parts(wheels, settings)
    problems = held_out_problems(wheels["reasoning-gym"], settings.problems, [s for own in parts["math"] for s in own])
    temporary = target.with_name(".data.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tokenizer = train_tokenizer(text for own in parts.values() for text in tokenizer_texts(own[0] + own[1]))
    tokenizer.save(str(temporary / "tokenizer.json"))
    for domain, own in parts.items():
        for part, samples in zip(PARTS, own, strict=True):
            write_samples(temporary / f"{domain}.{part}.jsonl", samples, domain)
            tokens = sum(
                len(encoding.ids) + 1
                for encoding in tokenizer.encode_batch([s.response for s in samples], add_special_tokens=False)
            )
            print(f"{domain} {part}: {len(samples):,} samples, {tokens:,} response tokens")
    lines = [json.dumps({"prompt": one["question"], "answer": one["answer"], "kind": one["kind"]}) for one in problems]
    (temporary / "problems.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    sync_tree(temporary)
    temporary.rename(target)


def domain_parts(wheels: dict[str, Path], settings: Settings) -> dict[str, list[list[Sample]]]:
    """For each domain its samples for the specialist, for fusion, dev and test; no group is in two but the first two.

    Raises:
        SystemExit: there are too few groups for as many held-out samples as the settings say.
    """
    sources = {
        "text": text_samples(wheels),
        "code": code_samples(wheels),
        "math": worded_problems(wheels, settings),
    }
    most = {"text": settings.text_samples, "code": settings.code_samples}
    sums_fusion = round(SUMS_SHARE * settings.fusion_samples["math"])
    sums_held_out = round(SUMS_SHARE * settings.held_out)
    parts = {}
    for domain, samples in sources.items():
        train, *held_out = split_parts(samples, HELD_OUT_PERCENT[domain])
        size = settings.held_out - (sums_held_out if domain == "math" else 0)
        if min(map(len, held_out)) < size:
            sys.exit(
                f"data: error: {domain} has {[len(own) for own in held_out]} held-out samples, and {size} are needed; "
                "lower held_out in settings.py"
            )
        # in the order of their contents' hashes: the first ones are a random choice
        fusion = settings.fusion_samples[domain] - (sums_fusion if domain == "math" else 0)
        parts[domain] = [*shared_out(train, fusion, most.get(domain)), *(own[:size] for own in held_out)]
    train, *held_out = sum_parts(wheels["reasoning-gym"], settings)
    sums = [*shared_out(train, sums_fusion), *(own[:sums_held_out] for own in held_out)]
    parts["math"] = [worded + own for worded, own in zip(parts["math"], sums, strict=True)]
    return parts


def shared_out(train: list[Sample], fusion: int, most: int | None = None) -> tuple[list[Sample], list[Sample]]:
    """The specialist's samples, at most so many, and those that are kept from it for fusion.

    Raises:
        SystemExit: there are too few for both.
    """
    if len(train) < 2 * fusion:
        sys.exit(
            f"data: error: {len(train)} training samples are too few to keep {fusion} from a specialist; lower "
            "fusion_samples in settings.py"
        )
    return train[fusion:][:most], train[:fusion]


def worded_problems(wheels: dict[str, Path], settings: Settings) -> Iterator[Sample]:
    """Problems of the first templates, each its own group.

    A hundred stories are too few to learn from them how others go on: held out by templates, the specialist would be at
    its best after a few steps, before it can calculate. So other parts tell the same stories with other numbers.
    """
    samples = math_samples(wheels, settings.gsm_per_template)
    for one in islice(samples, settings.gsm_templates * settings.gsm_per_template):
        yield replace(one, group=one.instruction)


def sum_parts(wheel: Path, settings: Settings) -> list[list[Sample]]:
    """Short arithmetic with its result, by part; the group is the problem itself, however it is worded.

    Unlike other answers, a number may be the answer in several parts.
    """
    parts: list[list[Sample]] = [[], [], []]
    questions = {one["question"]: one for kind in SUMS for one in sums(wheel, kind, settings.sums, SUMS_SEED)}
    for question, one in questions.items():
        expression = calculation(question)
        parts[part_of_group(expression, SUMS_PERCENT)].append(Sample(question, one["answer"], expression))
    for part in parts:
        Random(SUMS_SEED).shuffle(part)
    return parts


def held_out_problems(wheel: Path, each: int, seen: list[Sample]) -> list[dict[str, str]]:
    """Problems of another seed, none of which is among the samples `seen`, and none twice."""
    taken = {calculation(sample.instruction) for sample in seen}
    problems = []
    for kind in SUMS:
        count = 0
        for one in sums(wheel, kind, 200 * each, PROBLEMS_SEED):
            expression = calculation(one["question"])
            if expression not in taken and count < each:
                taken.add(expression)
                problems.append({**one, "kind": kind})
                count += 1
        if count < each:
            sys.exit(
                f"data: error: only {count} problems of {kind} are not in the other parts, and {each} are needed; "
                "lower problems in settings.py"
            )
    Random(PROBLEMS_SEED).shuffle(problems)
    return problems


def calculation(question: str) -> str:
    """What is to be calculated, without the words around it: both kinds ask for some of the same sums."""
    return "".join(re.findall(r"[-+*/()0-9]", question.removesuffix(".").split(": ")[-1]))


def sums(wheel: Path, kind: str, size: int, seed: int) -> list[dict[str, str]]:
    """Problems of one of reasoning-gym's generators, from the wheel, without the dozen packages it would import."""
    import_bare("reasoning_gym.arithmetic", wheel)
    nothing: dict[str, Any] = {
        name: type(name, (), {}) for name in ("BaseCurriculum", "RangeAttributeDefinition", "ScalarAttributeDefinition")
    }
    base = __import__("reasoning_gym.dataset", fromlist=["ProceduralDataset"]).ProceduralDataset
    stand_ins = {
        "coaching": nothing,
        "utils": {},
        "factory": {"ProceduralDataset": base, "register_dataset": lambda *_: None},
    }
    for name, attributes in stand_ins.items():
        module = types.ModuleType(f"reasoning_gym.{name}")
        vars(module).update(attributes)
        sys.modules[module.__name__] = module
    names = CLASSES[kind]
    module = __import__(f"reasoning_gym.arithmetic.{kind}", fromlist=names)
    data_set, configuration = (getattr(module, name) for name in names)
    made = data_set(configuration(seed=seed, size=size, **SUMS[kind]))
    return [{"question": made[index]["question"], "answer": made[index]["answer"]} for index in range(size)]


if __name__ == "__main__":
    main()
