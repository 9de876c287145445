"""Conversions that are killed, terminated or interrupted, in any phase: complete or absent, and a rerun puts it right.

A phase shows in what lies under the temporary directory, or, while verifying, in the bar on a terminal.
"""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megafuser.checkpoint.manifest import hash_file, read_manifest, verify_files
from megafuser.config.run_directory import resolve_checkpoint
from megafuser.errors import UserError
from tests.cli.tools import TOOLS, run_tool, tree
from tests.tiny_models import make_tokenizer

IMPORT, EXPORT = "convert_hf_to_mcore", "convert_mcore_to_hf"
MEGABYTE = 1 << 20
HIDDEN, FFN, ROWS, LAYERS = 1024, 4096, 320, 4
SLOW = pytest.mark.slow
WITHIN = 300  # seconds, on a machine that is busy


def make_large_llama(directory: Path) -> Path:
    """Some 270 MB in few layers, so that a conversion has a middle."""
    make_tokenizer(directory)
    shapes = {
        "model.embed_tokens.weight": (ROWS, HIDDEN),
        "lm_head.weight": (ROWS, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        attention = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
        mlp = {"mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}
        norms = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in (attention | mlp | norms).items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "vocab_size": ROWS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@dataclass(frozen=True)
class Direction:
    """One of the tools, what it reads, and what it makes of it when nothing happens to it.

    Attributes:
        tool: its name.
        source: the option and the directory to read.
        whole: an output that is not to be touched.
        expected: the contents of an output, by its dtype.
    """

    tool: str
    source: tuple[str, Path]
    whole: Path
    expected: dict[str, dict[str, str]]

    def arguments(self, out: Path, *more: str) -> tuple[object, ...]:
        return (*self.source, "--out", out, *more)


@pytest.fixture(scope="module")
def directions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Direction]:
    root = tmp_path_factory.mktemp("large")
    make_large_llama(root / "hf")
    there = Direction(IMPORT, ("--hf", root / "hf"), root / "mcore", {})
    back = Direction(EXPORT, ("--checkpoint", root / "mcore"), root / "back", {})
    for direction in (there, back):
        assert run_tool(direction.tool, *direction.arguments(direction.whole)) == 0
        direction.expected["keep"] = contents(direction.whole)
    return {"import": there, "export": back}


@pytest.fixture(params=["import", "export"])
def direction(request: pytest.FixtureRequest, directions: dict[str, Direction]) -> Direction:
    return directions[request.param]


class Conversion:
    """A tool as a program, with a terminal as its standard error."""

    def __init__(self, direction: Direction, out: Path, *more: str) -> None:
        self.out = out
        self.old = out.stat().st_ino if out.exists() else None
        command = [sys.executable, TOOLS / f"{direction.tool}.py", *direction.arguments(out, *more)]
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 100))
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=slave, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        os.close(slave)
        self.shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.shown += os.read(self._master, 65536)
            except OSError:  # how a terminal says that its last writer is gone
                return

    def stop(self, moment: Callable[["Conversion"], bool], number: signal.Signals) -> bool:
        """Sends a signal at a moment; whether it came before the end."""
        try:
            deadline = time.monotonic() + WITHIN
            while not moment(self) and self.process.poll() is None:
                assert time.monotonic() < deadline, f"not {moment.__name__} in time"
                time.sleep(0.0005)
            self.process.send_signal(number)
            self.process.wait(WITHIN)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            os.close(self._master)
        return self.process.returncode != 0

    def temporary(self) -> list[Path]:
        """Its directory beside the output, while it works."""
        return list(self.out.parent.glob(f".{self.out.name}.tmp-*"))

    def written(self) -> int:
        """Bytes of its disk that the weights take so far."""
        files = (path for directory in self.temporary() for path in directory.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)


def interrupted(
    direction: Direction, out: Path, moment: Callable[[Conversion], bool], number: signal.Signals
) -> Conversion:
    """A conversion that a signal met before its end; made anew where a busy machine was too late to see the moment."""
    topmost = next(path for path in reversed((out, *out.parents)) if not path.exists())
    for _ in range(5):
        conversion = Conversion(direction, out)
        # one that has its output, and only has to leave, has ended too
        if conversion.stop(moment, number) and not out.exists():
            return conversion
        shutil.rmtree(topmost)
    pytest.fail("it always ended before the signal")


def moments(
    *always: Callable[[Conversion], bool], slow: tuple[Callable[[Conversion], bool], ...]
) -> pytest.MarkDecorator:
    """Parametrizes a test with moments, some of which are looked at only where time is no matter."""
    values = [pytest.param(moment, id=moment.__name__) for moment in always]
    values += [pytest.param(moment, id=moment.__name__, marks=SLOW) for moment in slow]
    return pytest.mark.parametrize("moment", values)


def begun(conversion: Conversion) -> bool:
    return bool(conversion.temporary())


def writing(conversion: Conversion) -> bool:
    return conversion.written() > 100 * MEGABYTE


def verifying(conversion: Conversion) -> bool:
    return b"verifying" in conversion.shown


def described(conversion: Conversion) -> bool:
    """The last file of an import is there."""
    return any((directory / "manifest.json").exists() for directory in conversion.temporary())


def replaced(conversion: Conversion) -> bool:
    """The old output has gone, or goes."""
    return conversion.out.stat().st_ino != conversion.old


def contents(directory: Path) -> dict[str, str]:
    """Hash of every file, but for the index, to which torch gives a random id, and the manifest, which has its hash."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in ("manifest.json", "weights/.metadata"):
            found[name] = hash_file(path)
    return found


def assert_whole(direction: Direction, out: Path) -> None:
    assert contents(out) == direction.expected["keep"]
    if direction.tool == IMPORT:
        assert verify_files(out, read_manifest(out, "specialist")) == []
    assert [path.name for path in out.parent.iterdir()] == [out.name], "leftovers go with the next run"


@moments(writing, slow=(begun, verifying, described))
def test_killed(direction: Direction, tmp_path: Path, moment: Callable[[Conversion], bool]) -> None:
    if moment is described and direction.tool == EXPORT:
        pytest.skip("an export has no manifest")
    source = tree(direction.source[1])
    out = tmp_path / "out"
    interrupted(direction, out, moment, signal.SIGKILL)
    assert not out.exists()
    assert [path.name[:9] for path in tmp_path.iterdir()] == [".out.tmp-"]
    for path in (out, tmp_path):
        with pytest.raises(UserError):
            resolve_checkpoint(path)
        with pytest.raises(UserError):
            read_manifest(path)
    assert run_tool(direction.tool, *direction.arguments(out)) == 0
    assert_whole(direction, out)
    assert tree(direction.source[1]) == source


# Both tools replace an output by the same function.
@pytest.mark.parametrize("direction", ["import", pytest.param("export", marks=SLOW)], indirect=True)
@moments(replaced, slow=(writing, verifying, described))
def test_killed_while_overwriting(direction: Direction, tmp_path: Path, moment: Callable[[Conversion], bool]) -> None:
    """The old output or the new one is there and whole, whenever one looks."""
    if moment is described and direction.tool == EXPORT:
        pytest.skip("an export has no manifest")
    out = tmp_path / "out"
    if "bf16" not in direction.expected:
        assert run_tool(direction.tool, *direction.arguments(out, "--dtype", "bf16")) == 0
        direction.expected["bf16"] = contents(out)
        shutil.rmtree(out)
    for _ in range(5):
        shutil.copytree(direction.whole, out)
        conversion = Conversion(direction, out, "--overwrite", "--dtype", "bf16")
        conversion.stop(moment, signal.SIGKILL)
        left = contents(out)
        assert left == direction.expected["bf16" if replaced(conversion) else "keep"]
        if moment is described or replaced(conversion) == (moment is replaced):
            break
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
    else:
        pytest.fail("it was always killed too late")
    assert run_tool(direction.tool, *direction.arguments(out, "--overwrite")) == 0
    assert_whole(direction, out)


# Each tool and each signal once where time matters: both tools end by the same function.
@pytest.mark.parametrize(
    ("direction", "number"),
    [
        pytest.param("import", signal.SIGTERM, id="import-SIGTERM"),
        pytest.param("export", signal.SIGINT, id="export-SIGINT"),
        pytest.param("import", signal.SIGINT, id="import-SIGINT", marks=SLOW),
        pytest.param("export", signal.SIGTERM, id="export-SIGTERM", marks=SLOW),
    ],
    indirect=["direction"],
)
@moments(writing, slow=(begun, verifying))
def test_stopped(
    direction: Direction, tmp_path: Path, moment: Callable[[Conversion], bool], number: signal.Signals
) -> None:
    conversion = interrupted(direction, tmp_path / "deep" / "out", moment, number)
    assert conversion.process.returncode == 128 + number
    assert b"Traceback" not in conversion.shown
    assert list(tmp_path.iterdir()) == []
