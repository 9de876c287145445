"""How fast tools/decontaminate.py searches training samples for the texts of 10,000 benchmark items.

Texts are English and code of the installed Python's own documentation strings and sources, cut and shuffled, so that
their words are as common as words are; a hundredth of the samples hold an item. Seconds count from the start of the
process to its end, imports, the index and the writing included.

  python benchmarks/decontaminate.py [--mb 200] [--turns 3] [--workers 2] [--json FILE]
"""

import argparse
import json
import random
import statistics
import sys
import sysconfig
import tempfile
from pathlib import Path

from measured import measured

TOOL = Path(__file__).resolve().parents[1] / "tools" / "decontaminate.py"
ITEMS, ITEM_WORDS = 10_000, 100


def corpus() -> list[str]:
    """Words of Python's standard library, in order."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return " ".join(file.read_text("utf-8", errors="ignore") for file in files).split(" ")


def write_inputs(root: Path, size: int) -> int:
    """Writes the samples and the benchmark; returns how many samples hold an item."""
    generator = random.Random(0)
    words = corpus()
    items = [" ".join(generator.choices(words, k=ITEM_WORDS)) for _ in range(ITEMS)]
    with (root / "benchmark.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps({"question": item, "answer": "42"}) + "\n")
    planted = 0
    with (root / "data.jsonl").open("w", encoding="utf-8") as file:
        while file.tell() < size:
            start, length = generator.randrange(len(words)), int(generator.lognormvariate(5.0, 0.8)) + 3
            text = " ".join(words[start : start + length])
            if generator.random() < 0.01:
                text += "\n" + generator.choice(items).upper()
                planted += 1
            sample = {"instruction": text[: len(text) // 3], "response": text[len(text) // 3 :] + " end"}
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
    return planted


def main() -> None:
    """A few turns of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200, help="size of the training file, in megabytes")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--near-duplicates", type=float, help="as the tool has it")
    parser.add_argument("--json", type=Path, help="write the numbers")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        planted = write_inputs(root, options.mb * 10**6)
        command = [sys.executable, str(TOOL), "--input", str(root / "data.jsonl"), "--overwrite"]
        command += ["--benchmarks", str(root / "benchmark.jsonl"), "--out", str(root / "out")]
        command += ["--workers", str(options.workers)]
        if options.near_duplicates:
            command += ["--near-duplicates", str(options.near_duplicates)]
        for _ in range(options.turns):
            runs.append(measured(command)[1])
        found = json.loads((root / "out" / "report.json").read_text("utf-8"))["files"][0]["benchmark"]
    seconds, peak = statistics.median(run["seconds"] for run in runs), max(run["mib"] for run in runs)
    print(f"{planted} samples hold an item, {found} were dropped\n")
    print("| JSONL | workers | seconds | MB / s | peak, MiB |\n|---:|---:|---:|---:|---:|")
    print(f"| {options.mb} MB | {options.workers} | {seconds:.1f} | {options.mb / seconds:.1f} | {peak:.0f} |")
    if options.json:
        result = {"mb": options.mb, "workers": options.workers, "planted": planted, "dropped": found, "runs": runs}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
