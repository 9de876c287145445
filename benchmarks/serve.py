"""Throughput and latency of `megafuser serve` at several numbers of clients, each of which asks again when answered.

The server is a process of its own, on a given checkpoint, or on one of three random specialists that is made first.
Prompts are words whose number varies; answers are drawn with temperature 1 and have all the tokens that they may have,
unless the end token comes. Seconds are those that a client sees, over a connection that it keeps.

  python benchmarks/serve.py [--checkpoint DIR] [--clients 1 8 32] [--requests 4] [--tokens 32] [--json FILE]
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "prints", "seven", "numbers"]
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Answer:
    """What a client saw of one answer.

    Attributes:
        first: seconds to the first token.
        gaps: seconds between tokens.
        tokens: of the answer.
    """

    first: float
    gaps: list[float]
    tokens: int


def make_checkpoint(root: Path, hidden: int, layers: int) -> Path:
    """A run of three random specialists after one step of its warm-up."""
    sys.path.insert(0, str(ROOT))
    from megafuser.cli.main import main as megafuser
    from tests.fused_case import make_case, write_config

    sizes = {
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3 // 64 * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
    }
    specialists = {
        name: {"template": template, "extra_tokens": 0}
        for name, template in (("text", "ultralm"), ("code", "codellama"), ("math", "alpaca"))
    }
    values = make_case(root, train=2, valid=1, specialists=specialists, **sizes) | {
        "device": "cpu",
        "warmup": {"steps": 1, "samples_per_domain": 1, "lr": 1e-3},
        "evaluation": {"interval": 10, "samples_per_domain": 1},
    }
    values["data"]["sequence_length"] = 2048
    code = megafuser(["warmup", "--config", str(write_config(root / "config.yaml", values))])
    if code:
        raise SystemExit(code)
    return root / "run"


@contextmanager
def server(checkpoint: Path, options: Sequence[str]) -> Iterator[str]:
    """Starts one; gives its address."""
    command = [sys.executable, "-m", "megafuser", "serve", "--checkpoint", str(checkpoint), "--port", "0", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving \S+ at (http://\S+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield found[1]
                return
            sys.stderr.write(line)
        raise SystemExit(process.wait())
    finally:
        process.terminate()
        process.wait()


def ask(client: httpx.Client, generator: random.Random, words: int, tokens: int) -> Answer:
    """One answer, as a stream with a chunk for every token that has a text."""
    length = generator.randint(max(words // 2, 1), words * 3 // 2)
    messages = [{"role": "user", "content": " ".join(generator.choices(WORDS, k=length))}]
    body = {"messages": messages, "max_tokens": tokens, "temperature": 1.0, "seed": generator.randrange(2**31)}
    body |= {"stream": True, "gate": True, "stream_options": {"include_usage": True}}
    started = before = time.perf_counter()
    first, made, gaps = 0.0, 0, []
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            made = (chunk["usage"] or {}).get("completion_tokens", made)
            for choice in chunk["choices"]:
                count = len(choice.get("gate", {"weights": []})["weights"])
                if count:
                    now = time.perf_counter()
                    if first:
                        gaps += [(now - before) / count] * count
                    first, before = first or now - started, now
    return Answer(first, gaps, made)


def measure(url: str, clients: int, requests: int, words: int, tokens: int) -> dict[str, Any]:
    """Numbers of so many clients at once."""
    answers: list[Answer] = []

    def one(number: int) -> None:
        generator = random.Random(number)
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
            for _ in range(requests):
                answers.append(ask(client, generator, words, tokens))

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
    seconds = time.perf_counter() - started
    made = sum(answer.tokens for answer in answers)
    return {
        "clients": clients,
        "requests": len(answers),
        "tokens": made,
        "seconds": seconds,
        "tokens_per_second": made / seconds,
        "first_token_ms": percentiles([1000 * answer.first for answer in answers]),
        "per_token_ms": percentiles([1000 * gap for answer in answers for gap in answer.gaps]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th, 90th and 99th."""
    if len(values) < 2:
        return {f"p{percent}": values[0] if values else 0.0 for percent in PERCENTILES}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{percent}": cuts[percent - 1] for percent in PERCENTILES}


def main() -> None:
    """All numbers of clients, one after the other, on the same server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: one that is made")
    parser.add_argument("--hidden", type=int, default=512, help="of the specialists that are made")
    parser.add_argument("--layers", type=int, default=4, help="of the specialists that are made")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--words", type=int, default=40, help="mean length of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--max-running", type=int, default=32, help="the server's option")
    parser.add_argument("--json", type=Path, help="write the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = options.checkpoint or make_checkpoint(Path(directory), options.hidden, options.layers)
        with server(checkpoint, ["--max-running", str(options.max_running)]) as url:
            measure(url, 1, 1, options.words, 4)  # whatever is done once
            rows = [
                measure(url, clients, options.requests, options.words, options.tokens) for clients in options.clients
            ]
    print("clients  tokens/s   first token, ms: p50    p90    p99   per token, ms: p50    p90    p99")
    for row in rows:
        first, each = row["first_token_ms"].values(), row["per_token_ms"].values()
        print(
            f"{row['clients']:7d} {row['tokens_per_second']:9.1f}"
            + " " * 16
            + "".join(f"{value:7.0f}" for value in first)
            + " " * 13
            + "".join(f"{value:7.1f}" for value in each)
        )
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
