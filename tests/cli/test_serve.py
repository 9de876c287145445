"""`megafuser serve` as a user runs it: from a checkpoint to greedy answers, signals, several ranks, bad arguments."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from megafuser.cli.main import main
from tests.fused_case import SUBJECTS, write_jsonl
from tests.parallel.launch import ROOT
from tests.ports import free_ports
from tests.unit.serving.test_load import one_of_many

QUESTIONS = [f"What is the {subject}?" for subject in SUBJECTS] + [f"print({number})" for number in range(10)]
WAIT = 240.0


@pytest.fixture(scope="module")
def trained(both_stages: Path) -> Path:
    """The checkpoint of a warm-up, with a gate that prefers."""
    return both_stages / "run" / "warmup"


class Started:
    """A server in a process of its own, and what it has said so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.said: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            found = re.search(r"megafuser: serving \S+ at (http://\S+)", line)
            if found:
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def wait_until_ready(self) -> None:
        assert self._ready.wait(WAIT) and self.url, "".join(self.said)

    def end(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return code


@contextmanager
def started(checkpoint: Path, *arguments: str, launcher: Sequence[str] = (), **variables: str) -> Iterator[Started]:
    """Starts a server on a port of its own and kills it at the end if it is still there."""
    command = [sys.executable, *launcher, "-m", "megafuser", "serve", "--checkpoint", str(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    process = subprocess.Popen(
        [*command, "--port", "0", *arguments], env=environment, stderr=subprocess.PIPE, text=True, cwd=checkpoint
    )
    server = Started(process)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        server.end()


def ask(url: str, text: str, **settings: object) -> dict:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **settings}
    headers = {"Authorization": "Bearer sesame"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def generated(checkpoint: Path, directory: Path) -> list[str]:
    """What `megafuser generate` says to all questions."""
    file = write_jsonl(directory / "prompts.jsonl", [{"prompt": text} for text in QUESTIONS])
    out = directory / "out.jsonl"
    common = ["--checkpoint", str(checkpoint), "--file", file, "--out", str(out), "--max-new-tokens", "8"]
    assert main(["generate", *common]) == 0
    return [json.loads(line)["completion"] for line in out.read_text("utf-8").splitlines()]


def test_twenty_greedy_texts_are_those_of_generate(trained: Path, tmp_path: Path) -> None:
    expected = generated(trained, tmp_path)
    # a busy machine may need long for the answer that is under way at the end
    with started(trained, "--grace-seconds", str(WAIT), MEGAFUSER_API_KEY="sesame") as server:
        found = [ask(server.url, text)["choices"][0]["message"]["content"] for text in QUESTIONS]
        assert found == expected
        assert len(set(found)) > 5
        assert httpx.get(f"{server.url}/v1/models", trust_env=False, timeout=WAIT).status_code == 401
        # a long answer is under way when the signal comes, and still ends as it would
        body = {"prompt": "a", "max_tokens": 150, "temperature": 1.0, "seed": 4, "stream": True}
        headers = {"Authorization": "Bearer sesame"}
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=WAIT, trust_env=False
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.end() == 0
    said = "".join(server.said)
    assert "Traceback" not in said
    assert "sesame" not in said
    assert "megafuser: POST /v1/completions 200" in said


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor", "pipeline"])
def test_two_ranks_say_what_one_says(trained: Path, tmp_path: Path, layout: str) -> None:
    expected = generated(trained, tmp_path)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", free_ports(1)[0]]
    with started(trained, f"--{layout}", "2", launcher=launcher) as server:
        assert [ask(server.url, text)["choices"][0]["message"]["content"] for text in QUESTIONS[:4]] == expected[:4]
        server.process.send_signal(signal.SIGTERM)
        server.end()  # the code is torchrun's own
    assert "megafuser: stopping" in "".join(server.said)
    assert "[rank" not in "".join(server.said)


@pytest.mark.slow
def test_two_thousand_requests_leave_no_memory(trained: Path) -> None:
    with started(trained) as server:
        process = psutil.Process(server.process.pid)  # one of its own: clients leave memory behind as well

        def after(count: int, seed: int) -> int:
            with ThreadPoolExecutor(20) as pool:
                ended = list(pool.map(lambda number: one_of_many(server, number, seed), range(count)))
            assert {"gone", "done"} == set(ended)
            return process.memory_full_info().uss

        before, middle, last = after(300, 1), after(1000, 2), after(1000, 3)
    # what grows for good grows in both halves; a request's tokens and texts alone are some kilobytes
    assert min(last - middle, middle - before) < 2 << 20, (before, middle, last)
    assert last - before < 16 << 20, (before, middle, last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "must be a whole number from 0 to 65535"),
        (["--api-key", ""], "must be one or more printable"),
        (["--api-key", "a b"], "must be one or more printable"),
        (["--max-queue", "0"], "whole number of at least 1"),
        (["--max-body-mib", "nan"], "must be a number above 0"),
        (["--request-timeout", "-1"], "must be a number above 0"),
        (["--host", "no.such.host.invalid"], "cannot be listened at"),
        (["--host", "203.0.113.7", "--port", "0"], "cannot be listened at"),
        (["--prot", "1"], "nearest valid one is '--port'"),
        (["--force", "poet", "--port", "0"], "no specialist 'poet'"),
        (["--cache-gib", "100000000", "--port", "0"], "give a smaller --cache-gib"),
    ],
)
def test_bad_arguments_are_one_line(trained: Path, capfd, arguments: list[str], message: str) -> None:
    assert main(["serve", "--checkpoint", str(trained), *arguments]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert error[-1].startswith("megafuser: error: ")
    assert message in error[-1]


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(trained: Path, capfd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "--checkpoint", str(trained), "--port", port]) == 2
    (error,) = capfd.readouterr().err.strip().splitlines()
    assert f"127.0.0.1:{port} cannot be listened at" in error


def test_no_checkpoint_is_one_line(tmp_path: Path, capfd) -> None:
    assert main(["serve", "--checkpoint", str(tmp_path), "--port", "0"]) == 2
    (error,) = capfd.readouterr().err.strip().splitlines()
    assert error.startswith("megafuser: error: ")
