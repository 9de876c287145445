"""What is handed out: the archive of the sources, the wheel, and what runs where nothing but the wheel is installed."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path, PurePosixPath
from unittest.mock import patch

import pytest
from packaging.requirements import Requirement

import megafuser
from tests.fused_case import SPECIALISTS, make_case, make_hf_specialists, write_config

ROOT = Path(__file__).parents[2]
NO_CODE = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "megafuser").rglob("*")
    if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
)


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program that finds nothing of this repository, unless it is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The archive of the sources, and the wheel that is made of it alone."""
    directory = tmp_path_factory.mktemp("distributions")
    copy = directory / "tree"  # builds leave files beside what they read
    tracked = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    build = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    run([sys.executable, "-c", build, str(directory)], copy)
    (archive,) = directory.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(directory)]
    run([*pip, str(archive)], directory)
    (wheel,) = directory.glob("*.whl")
    return archive, wheel


def test_both_have_everything_that_is_no_code(distributions: tuple[Path, Path]) -> None:
    archive, wheel = distributions
    assert "megafuser/py.typed" in NO_CODE and any(name.endswith(".j2") for name in NO_CODE)
    with tarfile.open(archive) as file:
        sources = {name.split("/", 1)[-1] for name in file.getnames()}
    assert {*NO_CODE, "LICENSE", "README.md", "CHANGELOG.md", "constraints.txt"} <= sources
    with zipfile.ZipFile(wheel) as file:
        installed = set(file.namelist())
    assert set(NO_CODE) <= installed
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "megafuser").rglob("*.py")}
    assert {name for name in installed if name.startswith("megafuser/")} == modules | set(NO_CODE)
    scripts = {name.rsplit("/", 1)[-1] for name in installed if "/scripts/" in name}
    assert scripts == {path.name for path in (ROOT / "tools").glob("*.py")}


def test_the_version_stands_in_one_place(distributions: tuple[Path, Path]) -> None:
    """Everything else reads it there; the change log is written by hand, and says what is in it."""
    with zipfile.ZipFile(distributions[1]) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        told = message_from_bytes(file.read(name))
    assert told["Version"] == megafuser.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest and newest[1] == megafuser.__version__
    # but for what a run has recorded of itself
    words = ["git", "grep", "-lF", "--untracked", f'"{megafuser.__version__}"', "--", ":!docs/*/results.json"]
    tracked = run(words, ROOT).stdout.split()
    assert tracked == ["megafuser/__init__.py"]


def requirements() -> dict[str, list[Requirement]]:
    """setup.py's, by extra; the empty name is for those without one; an installation may have older ones."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    given = setup.call_args.kwargs
    named = {"": given["install_requires"], **given["extras_require"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in named.items()}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constrained_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    return {canonical(name): version for name, version in pins}


def test_what_is_needed_without_extras_has_a_tested_version_within_its_range() -> None:
    tested, needed = constrained_versions(), requirements()
    assert {canonical(one.name) for one in needed[""]} <= set(tested)
    asked = [one for extra in needed.values() for one in extra]
    assert {canonical(one.name) for one in asked} - set(tested) == {"wandb"}  # as the file's head says
    assert set(tested) - {canonical(one.name) for one in asked} == {"nvdlfw-inspect"}  # the tests' stand-in needs it
    for one in asked:
        version = tested.get(canonical(one.name))
        assert version is None or one.specifier.contains(version, prereleases=True), one


def test_the_constrained_versions_are_those_that_these_tests_run_with() -> None:
    beside = {"transformer-engine", "nvdlfw-inspect"}  # not on the path
    for name, version in constrained_versions().items():
        if name not in beside:
            assert metadata.version(name).split("+")[0] == version, name


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_an_image_copies_what_there_is_and_what_its_installation_reads(name: str) -> None:
    """All that can be said without Docker."""
    text = (ROOT / name).read_text("utf-8")
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert {"setup.py", "pyproject.toml", "README.md", "megafuser", "tools", "constraints.txt"} <= set(copied)
    assert all((ROOT / one).exists() for one in copied)
    extras = re.search(r"'\.\[(.+)\]'", text)
    assert extras and set(extras[1].split(",")) <= set(requirements())
    assert "was never built" in text


def test_what_an_image_copies_is_not_kept_from_it() -> None:
    """By .dockerignore, whose patterns begin at the root, or with `**/` anywhere."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]

    def ignored(path: PurePosixPath) -> bool:
        return any(
            fnmatch(path.name, pattern[3:])
            if pattern.startswith("**/")
            else pattern.count("/") == len(path.parts) - 1 and path.match(pattern)
            for pattern in patterns
        )

    copied = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "megafuser", "tools"]
    names = run(["git", "ls-files", "--", *copied], ROOT).stdout.split()
    paths = [PurePosixPath(name) for name in names]
    assert len(paths) > 200
    assert not [path for path in paths if any(map(ignored, [path, *path.parents[:-1]]))]
    left_out = (".git", "examples/quickstart/out", "megafuser/data/__pycache__", "runs", "checkpoints")
    assert all(ignored(PurePosixPath(name)) for name in left_out)


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of a virtual environment that was empty before the wheel and what it needs came."""
    directory = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", str(directory / "venv")], directory)
    programs = directory / "venv/bin"
    pip = [str(programs / "python"), "-m", "pip", "install", "-q", "--constraint", str(ROOT / "constraints.txt")]
    run([*pip, "torch"], directory)
    run([*pip, str(distributions[1])], directory)
    yield programs
    shutil.rmtree(directory)  # a gigabyte


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_in_an_empty_environment(installed: Path, tmp_path: Path) -> None:
    """Far from this repository: help, a plan, a conversion, and two steps of warm-up."""

    def program(name: str, *arguments: object) -> str:
        return run([str(installed / name), *map(str, arguments)], tmp_path).stdout

    python = "import megafuser, sys; print(megafuser.__file__, 'pytest' in sys.modules)"
    assert program("python", "-c", python).startswith(str(installed.parent))
    assert program("megafuser", "--version") == f"megafuser {megafuser.__version__}\n"
    assert "warmup" in program("megafuser", "--help")
    values = make_case(tmp_path, train=4, valid=1) | {"device": "cpu"}
    values["warmup"] = {"steps": 2, "samples_per_domain": 2, "lr": 1e-2}
    values["evaluation"] = {"interval": 2, "samples_per_domain": 1}
    models = make_hf_specialists(tmp_path / "again")
    for one in values["specialists"]:
        one["checkpoint"] = str(tmp_path / "converted" / one["name"])
        told = program("convert_hf_to_mcore.py", "--hf", models[one["name"]], "--out", one["checkpoint"])
        assert "llama" in told
    assert len(models) == len(SPECIALISTS)
    config = write_config(tmp_path / "config.yaml", values)
    assert "the fullest rank needs" in program("megafuser", "plan", "--config", config)
    assert "warmup is finished" in program("megafuser", "warmup", "--config", config)
    lines = (Path(values["run_dir"]) / "metrics.jsonl").read_text().splitlines()
    assert sum('"split": "train"' in line for line in lines) == 2
    program("convert_mcore_to_hf.py", "--checkpoint", values["run_dir"], "--out", "exported")
    assert (tmp_path / "exported/modeling_megafuser.py").is_file()
