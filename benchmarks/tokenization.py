"""How fast samples become a cache, against a bare loop over the `tokenizers` library that encodes the same texts.

Both sides have all cores: the bare loop encodes one batch after the other with the library's own threads, K prompts and
K responses of every sample, and keeps nothing; ours reads, checks, renders, encodes, compares and writes. Sides take
turns; peaks are those of all processes of a side together.

  python benchmarks/tokenization.py [--mb 100] [--turns 3] [--specialists 3] [--json FILE]
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import measured

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TEMPLATES = ("ultralm", "codellama", "alpaca", "chatml", "plain")
# fmt: off
WORDS = [
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "they", "at", "be",
    "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all", "were", "when", "there", "can",
    "said", "if", "do", "will", "each", "about", "how", "other", "into", "time", "could", "make", "first", "people",
    "made", "over", "down", "only", "way", "find", "water", "long", "little", "very", "after", "words", "called",
    "return", "number", "integral", "probability", "equation", "matrix", "vector", "theorem", "paragraph", "function",
]
# fmt: on


def write_samples(path: Path, size: int) -> None:
    """Instruction samples whose lengths vary as those of public sets do (log-normal, a few hundred words)."""
    generator = random.Random(0)

    def text(mean: float) -> str:
        count = int(generator.lognormvariate(mean, 0.8)) + 3
        words = [generator.choice(WORDS) for _ in range(count)]
        return " ".join(f"{word}{generator.randint(2, 9999)}" if generator.random() < 0.1 else word for word in words)

    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            file.write(json.dumps({"instruction": text(4.0), "response": text(5.0)}) + "\n")


def make_tokenizer(directory: Path) -> None:
    """The 32,000 pieces that mistral-common ships, as a Hugging Face tokenizer."""
    import mistral_common
    from transformers import AutoTokenizer, LlamaConfig

    directory.mkdir(parents=True)
    LlamaConfig(vocab_size=32000).save_pretrained(directory)
    shutil.copyfile(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", directory / "tokenizer.model")
    AutoTokenizer.from_pretrained(directory).save_pretrained(directory)


def bare(data: Path, tokenizer: Path, templates: tuple[str, ...]) -> float:
    """Seconds of the bare loop, the reading left out."""
    from megafuser.data.templates import get_template
    from megafuser.data.tokenization import load_tokenizers

    backend = load_tokenizers({"only": tokenizer})["only"].backend_tokenizer
    samples = [json.loads(line) for line in data.open(encoding="utf-8")]
    built = [get_template(name, None) for name in templates]
    texts = [[template.turn(sample["instruction"], None, True) for sample in samples] for template in built]
    responses = [sample["response"] for sample in samples]
    started = time.perf_counter()
    for own in texts:
        for column in (own, responses):
            for start in range(0, len(column), 1000):
                [encoding.ids for encoding in backend.encode_batch_fast(column[start : start + 1000])]
    return time.perf_counter() - started


def ours(data: Path, tokenizer: Path, templates: tuple[str, ...], cache: Path) -> float:
    """Seconds from nothing to an open cache."""
    from megafuser.config.data import DataConfig, DomainConfig
    from megafuser.config.schema import RunConfig
    from megafuser.config.specialists import SpecialistConfig
    from megafuser.data.cache.loading import load_data
    from megafuser.data.tokenization import load_tokenizers

    names = [f"s{index}" for index in range(len(templates))]
    config = RunConfig(
        run_dir=str(cache),
        specialists=tuple(SpecialistConfig(n, "none", t) for n, t in zip(names, templates, strict=True)),
        data=DataConfig(domains={"text": DomainConfig((str(data),), (str(data),))}),
    )
    tokenizers = load_tokenizers(dict.fromkeys(names, tokenizer))
    sizes = {name: len(tokenizers[name]) for name in names}
    started = time.perf_counter()
    load_data(config, tokenizers, sizes, dict.fromkeys(names, 4096), ["train"])
    return time.perf_counter() - started


def main() -> None:
    """Both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100, help="size of the JSONL file, in megabytes")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--specialists", type=int, default=3, choices=range(2, len(TEMPLATES) + 1))
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--side", choices=("ours", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    templates = TEMPLATES[: options.specialists]
    if options.side:
        data, tokenizer = options.root / "data.jsonl", options.root / "tokenizer"
        if options.side == "bare":
            print(bare(data, tokenizer, templates))
        else:
            with tempfile.TemporaryDirectory(dir=options.root) as cache:
                print(ours(data, tokenizer, templates, Path(cache)))
        return
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_samples(root / "data.jsonl", options.mb * 10**6)
        make_tokenizer(root / "tokenizer")
        found: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
        for _ in range(options.turns):
            for side, runs in found.items():
                common = ["--side", side, "--root", str(root), "--specialists", str(options.specialists)]
                output, run = measured([sys.executable, __file__, *common])
                # what the side says itself, without imports and reading
                runs.append({**run, "seconds": float(output.split()[-1])})
    seconds = {side: statistics.median(run["seconds"] for run in runs) for side, runs in found.items()}
    print("| side | seconds | MB / s | over bare | peak, MiB |\n|---|---:|---:|---:|---:|")
    for side, runs in found.items():
        peak = max(run["mib"] for run in runs)
        print(
            f"| {side} | {seconds[side]:.1f} | {options.mb / seconds[side]:.1f} | "
            f"{seconds[side] / seconds['bare']:.2f} | {peak:.0f} |"
        )
    if options.json:
        result: dict[str, Any] = {"mb": options.mb, "specialists": options.specialists, "runs": found}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
