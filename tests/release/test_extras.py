"""A package that is not installed: one line that names the extra, before anything is loaded or written."""

import ast
import json
import sys
from pathlib import Path

import pytest

from megafuser.cli.main import main
from megafuser.config.load import load_config
from megafuser.extras import PACKAGES
from megafuser.watching.wandb_log import check_wandb
from tests.cli.tools import run_tool
from tests.release.test_distribution import canonical, requirements

ROOT = Path(__file__).parents[2]
# what is imported by another name than it is installed by
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "megatron": "megatron-core", "google": "protobuf"}
# brought by another one, whose part they are
PARTS = {
    "starlette": "fastapi",
    "evaluate": "lm-eval",
    "pydantic_core": "pydantic",
    "markupsafe": "jinja2",
    "functorch": "torch",
}


def third_party(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"megafuser", "__future__"}


def test_all_that_is_imported_is_required_or_an_extra() -> None:
    optional = {package: extra for extra, packages in PACKAGES.items() for package in packages}
    needed = requirements()
    extras = {package: canonical(DISTRIBUTIONS.get(package, package)) for package in optional}
    for package, extra in optional.items():
        assert extras[package] in {canonical(one.name) for one in needed[extra]}, (package, extra)
    always = {canonical(one.name) for one in needed[""]}
    files = [*(ROOT / "megafuser").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    assert len(files) > 100
    for path in files:
        for name in third_party(path):
            name = PARTS.get(name, DISTRIBUTIONS.get(name, name))
            assert canonical(name) in always | set(extras.values()), f"{path} imports {name}"


def refused(capsys: pytest.CaptureFixture[str], code: int, package: str, extra: str) -> str:
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'the package {package} is not installed; pip install "megafuser[{extra}]"' in line
    return line


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    step = tmp_path / "run/warmup/step_000400"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    (step.parent / "latest").write_text(step.name)
    return step


@pytest.mark.parametrize("package", PACKAGES["serve"])
def test_serve(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code = main(["serve", "--checkpoint", str(checkpoint)])
    assert "megafuser serve: " in refused(capsys, code, package, "serve")


def test_evaluate(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    out = tmp_path / "out"
    code = main(["evaluate", "--checkpoint", str(checkpoint), "--tasks", "gsm8k", "--out", str(out)])
    assert "megafuser evaluate: " in refused(capsys, code, "lm_eval", "eval")
    assert not out.exists()


def test_near_duplicates(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    for name in ("in", "benchmark"):
        sample = {"instruction": "one two three four five six seven eight nine", "response": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(sample) + "\n")
    given = ["--input", tmp_path / "in.jsonl", "--benchmarks", tmp_path / "benchmark.jsonl", "--near-duplicates", "0.8"]
    refused(capsys, run_tool("decontaminate", *given, "--out", tmp_path / "out"), "datasketch", "dedup")
    assert not (tmp_path / "out").exists()


CONFIG = """\
run_dir: run
specialists:
  - {name: text, checkpoint: checkpoints/text, template: ultralm}
  - {name: code, checkpoint: checkpoints/code, template: codellama}
data:
  domains:
    text: {train: [{dataset: org/name, split: train}], valid: [v.jsonl]}
"""


def test_data_sets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from megafuser.data.sources.files import check_sources
    from megafuser.errors import UserError

    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r'org/name.*: the package datasets .*pip install "megafuser\[datasets\]"'):
        check_sources(config.data)


def test_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from megafuser.errors import UserError

    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "config.yaml", ["logging.wandb={project: x}"])
    with pytest.raises(UserError, match=r'logging\.wandb: the package wandb .*"megafuser\[wandb\]", or set it to null'):
        check_wandb(config.logging)


def test_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from megafuser.errors import UserError
    from megafuser.runtime.device import select_backend

    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    command = r'pip install --no-build-isolation "megafuser\[gpu\]"'
    with pytest.raises(
        UserError, match=f"Engine is not installed; {command}, as the documentation says under GPUs, or set backend"
    ):
        select_backend("transformer_engine", torch.device("cuda"))


def test_each_extra_is_one_of_the_distribution() -> None:
    assert {*PACKAGES, "gpu", "test"} <= set(requirements())
