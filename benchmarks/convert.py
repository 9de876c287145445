#!/usr/bin/env python3
"""How fast, and in how much memory, conversions work: bytes per second against `cp`, and peak memory at two depths.

Makes Llama-7B-shaped models (hidden size 4096, 32 heads, MLP width 11008, 32,000 ids, bf16) of two depths, copies the
deeper one with `cp` and `sync`, converts both in both directions without verification, and prints a table. All is
repeated, in turns, since the speed of a disk changes while one looks; the table has medians. A conversion counts from
reading the first header to the last flush and rename; the start of Python and PyTorch is a column of its own.

  python benchmarks/convert.py [--layers 10] [--shallow 4] [--repeats 5] [--directory DIR]

Needs about three times the deeper model's size on the disk (10 layers: 4.6 GB), and ratios mean little where the page
cache has no room for as much.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, HEADS, MLP, VOCABULARY = 4096, 32, 11008, 32000
TENSORS_PER_FILE = 40


def make_model(directory: Path, layers: int) -> int:
    """Writes a model of random bf16 weights in a few shards; returns the bytes of its weights."""
    directory.mkdir()
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (MLP, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (HIDDEN, MLP), f"{prefix}input_layernorm.weight": (HIDDEN,)}
        shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    # random bytes are slow to make and no harder to copy, so all weights are parts of one piece of them
    noise = torch.randn(VOCABULARY * HIDDEN).to(torch.bfloat16)
    keys, places = list(shapes), {}
    for start in range(0, len(keys), TENSORS_PER_FILE):
        name = f"model-{start:05d}.safetensors"
        part = {
            key: noise[: torch.Size(shapes[key]).numel()].view(shapes[key]).clone()
            for key in keys[start:][:TENSORS_PER_FILE]
        }
        save_file(part, directory / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")  # its content is carried along unread
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def timed(action: Callable[[], object]) -> float:
    """Seconds of an action."""
    start = time.monotonic()
    action()
    return time.monotonic() - start


def claim_memory(directory: Path, nbytes: int) -> None:
    """Writes a file of that size and removes it.

    A virtual machine may have given its free memory back to its host, and getting it again for the page cache takes
    several times as long as writing into it. So each measurement begins right after as much memory was in use.
    """
    path = directory / "claim"
    with path.open("wb") as file:
        for _ in range(nbytes // 2**23 + 1):
            file.write(bytes(2**23))
    path.unlink()


def copy(source: Path, target: Path) -> None:
    """`cp` of the weights, and `sync` of what it wrote."""
    target.mkdir()
    subprocess.run(["cp", *map(str, source.glob("*.safetensors")), str(target)], check=True)
    subprocess.run(["sync"], check=True)


def convert(direction: str, source: Path, target: Path, nbytes: int) -> dict[str, float]:
    """Runs one conversion in a process of its own: its seconds, those of the start, and peak resident memory in MiB."""
    command = [sys.executable, __file__, "--direction", direction, "--source", str(source), "--target", str(target)]
    command += ["--nbytes", str(nbytes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def convert_here(direction: str, source: Path, target: Path, nbytes: int) -> None:
    """What the process does: prints its seconds and its peak memory as JSON."""
    start = time.monotonic()
    sys.path.insert(0, str(ROOT))
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: F401 (a part of the start)

    from megafuser.conversion.export import export_checkpoint
    from megafuser.conversion.hf_to_mcore import import_specialist

    action = {"import": import_specialist, "export": export_checkpoint}[direction]
    start = time.monotonic() - start
    claim_memory(target.parent, nbytes)
    seconds = timed(lambda: action(source, target, verify="none"))
    # not getrusage's, which begins with the peak of the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "start": start, "peak": peak}))


def measure(directory: Path, layers: int, shallow: int, repeats: int) -> list[str]:
    """Makes the models, measures, and returns the table's lines."""
    print("making the models …", file=sys.stderr)
    nbytes = make_model(directory / "deep", layers)
    make_model(directory / "shallow", shallow)
    subprocess.run(["sync"], check=True)
    seconds: dict[str, list[float]] = {"cp and sync": [], "import": [], "export": []}
    starts: dict[str, list[float]] = {"import": [], "export": []}
    peaks: dict[tuple[str, int], float] = {}
    for turn in range(repeats):
        print(f"turn {turn + 1} of {repeats} …", file=sys.stderr)
        work = directory / "work"
        work.mkdir()
        claim_memory(work, nbytes)
        seconds["cp and sync"].append(timed(lambda: copy(directory / "deep", work / "copy")))  # noqa: B023
        shutil.rmtree(work / "copy")
        for depth, name in ((shallow, "shallow"), (layers, "deep")):
            for what, source, target in (
                ("import", directory / name, work / "specialist"),
                ("export", work / "specialist", work / "back"),
            ):
                measured = convert(what, source, target, nbytes if name == "deep" else 0)
                if name == "deep":
                    seconds[what].append(measured["seconds"])
                    starts[what].append(measured["start"])
                peaks[what, depth] = max(measured["peak"], peaks.get((what, depth), 0))
            shutil.rmtree(work / "specialist")
            shutil.rmtree(work / "back")
        shutil.rmtree(work)
    lines = [
        f"{nbytes / 1e9:.2f} GB of bf16 weights in {layers} layers; medians of {repeats} turns.",
        "",
        f"| | seconds | GB/s | of cp and sync | start, seconds | peak memory, {shallow} layers | {layers} layers |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    reference = statistics.median(seconds["cp and sync"])
    for what, times in seconds.items():
        median = statistics.median(times)
        columns = [what, f"{median:.2f}", f"{nbytes / median / 1e9:.2f}", f"{reference / median:.2f}"]
        columns.append(f"{statistics.median(starts[what]):.1f}" if what in starts else "")
        columns += [f"{peaks[what, depth]:.0f} MiB" if what in starts else "" for depth in (shallow, layers)]
        lines.append(f"| {' | '.join(columns)} |")
    lines += ["", *(f"{what}: {', '.join(f'{time:.2f}' for time in times)} s" for what, times in seconds.items())]
    return lines


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="of the deeper model")
    parser.add_argument("--shallow", type=int, default=4, help="layers of the other, for the memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to measure; by default a temporary one")
    for name in ("--direction", "--source", "--target", "--nbytes"):  # how this script calls itself
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.direction:
        convert_here(options.direction, Path(options.source), Path(options.target), int(options.nbytes))
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        print("\n".join(measure(Path(directory), options.layers, options.shallow, options.repeats)))


if __name__ == "__main__":
    main()
