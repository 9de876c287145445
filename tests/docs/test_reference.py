"""The generated reference: complete, in agreement with the code, and refused where the code says less than it needs."""

import ast
import json
import re
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from megafuser.cli.main import main
from megafuser.config.load import load_config, to_yaml
from tests.docs.pages import Block, blocks
from tests.fused_case import make_case, write_config
from tests.parallel.launch import ROOT


def test_the_configuration_has_every_key_with_its_default() -> None:
    from generator.configuration import page

    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|", page().replace("\\|", "/"), re.M))
    for example in ("quickstart", "ultrafuser-13b", "qwen2.5-7b"):
        path = ROOT / "examples" / example / "config.yaml"
        given, resolved = yaml.safe_load(path.read_text("utf-8")), yaml.safe_load(to_yaml(load_config(path)))
        for key, value in _flat(resolved).items():
            general = re.sub(r"\bdomains\.\w+", "domains.NAME", re.sub(r"\.\d+(?=\.|$)", ".N", key)).removesuffix(".N")
            assert general in rows, key
            if key not in _flat(given) and not general.startswith(("specialists", "data.domains.NAME.train")):
                expected = rows[general].strip("`")
                assert json.dumps(value) == expected or expected in ("those below", "null") or general != key, key


def test_the_recipe_has_every_key() -> None:
    from generator.configuration import recipe_page

    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|", recipe_page().replace("\\|", "/"), re.M))
    for example in ("ultrafuser-13b", "qwen2.5-7b"):
        for key in _flat(yaml.safe_load((ROOT / "examples" / example / "data.yaml").read_text("utf-8"))):
            general = re.sub(r"\bdomains\.\w+", "domains.NAME", re.sub(r"\.\d+(?=\.|$)", ".N", key)).removesuffix(".N")
            general = re.sub(r"(columns|fields)\.\w+$", r"\1", general)
            assert general in rows, key
    assert (rows["domains.NAME.samples"], rows["ngram"]) == ("*required*", "`13`")


def python_blocks(page: str) -> list[Block]:
    return [block for block in blocks(ROOT / "docs" / "reference.md", page) if block.language == "python"]


def _flat(tree: object, above: str = "") -> dict[str, object]:
    if isinstance(tree, dict) and tree:
        return {key: leaf for name, value in tree.items() for key, leaf in _flat(value, f"{above}{name}.").items()}
    if isinstance(tree, list) and tree and not isinstance(tree[0], int | float):
        return {key: leaf for index, value in enumerate(tree) for key, leaf in _flat(value, f"{above}{index}.").items()}
    return {above.rstrip("."): tree}


def test_a_key_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from generator import configuration

    @dataclass(frozen=True)
    class Silent:
        """Says nothing of its key."""

        key: int = 1

    monkeypatch.setattr(configuration, "RunConfig", Silent)
    with pytest.raises(LookupError, match="key"):
        configuration.page()


def test_commands_have_every_option_of_every_command_and_tool() -> None:
    from generator.commands import commands, page, tools

    text = page()
    assert {path.name for path in (ROOT / "tools").glob("*.py")} == {name.removeprefix("tools/") for name in tools()}
    for name, parser in {**commands(), **tools()}.items():
        heading = name if name.startswith("tools/") else f"megafuser {name}"
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
        shown = {option for option in options if re.search(rf"`(?:-\w, )?{option}\b", section)}
        assert shown == options, name


def test_a_name_without_a_meaning_and_a_meaning_without_a_name_are_refused() -> None:
    from generator.literals import described

    assert described(["a"], {"a": "first"}, "x") == [("a", "first")]
    with pytest.raises(LookupError, match="no meaning for b"):
        described(["a", "b"], {"a": "first"}, "x")
    with pytest.raises(LookupError, match="b is no more"):
        described(["a"], {"a": "first", "b": "second"}, "x")


def test_metrics_have_what_a_step_writes() -> None:
    from generator.literals import written_keys
    from generator.metrics import page

    text = page()
    keys = written_keys("megafuser/training/metrics.py", "training_line")
    assert {"grad_norm", "mfu", "skipped", "tokens_per_second", "lr/{…}"} <= set(keys)
    assert all(f"`{key.replace('{…}', 'NAME')}`" in text for key in keys)
    assert "`megafuser_time_to_first_token_seconds`" in text and "`megafuser_generated_tokens_total`" in text


def test_the_checkpoint_format_has_what_manifests_hold() -> None:
    from generator.checkpoint_format import page

    text = page()
    for name in ("format_version", "files", "rotary_base", "shared_vocabulary", "tied_head", "references"):
        assert f"| `{name}` |" in text
    assert "| `RUN_DIR/STAGE/step_000500` |" in text


def test_the_python_reference_has_every_module_and_its_examples_can_be_imported() -> None:
    from generator.python import page

    text = page()
    for path in (ROOT / "megafuser").rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert f"### {'.'.join(path.relative_to(ROOT).with_suffix('').parts)}\n" in text
    for block in python_blocks(text):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom):
                module = ast.parse((ROOT / f"{(node.module or '').replace('.', '/')}.py").read_text("utf-8"))
                there = {item.name for item in module.body if isinstance(item, ast.FunctionDef | ast.ClassDef)}
                assert {alias.name for alias in node.names} <= there


def test_the_python_references_examples_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word, one after the other, as files; the answer is that of the command."""
    from generator.python import page

    monkeypatch.chdir(tmp_path)
    values = make_case(tmp_path, train=4, valid=2)
    (tmp_path / "hf").rename("models")
    for specialist in values["specialists"]:
        specialist["checkpoint"] = f"checkpoints/{specialist['name']}"
    stage = {"steps": 2, "samples_per_domain": 2, "lr": 1e-2}
    write_config(tmp_path / "config.yaml", values | {"device": "cpu", "warmup": stage, "joint": stage})
    converting, fusing, answering = python_blocks(page())
    for number, block in enumerate((converting, fusing)):
        Path(f"example{number}.py").write_text(block.text)
        runpy.run_path(f"example{number}.py", run_name="__main__")
    assert [Path(f"runs/mine/{name}/latest").read_text() for name in ("warmup", "joint")] == ["step_000002\n"] * 2
    assert json.loads(Path("report/report.json").read_text())["step"] == 2
    capsys.readouterr()
    Path("example2.py").write_text(answering.text)
    runpy.run_path("example2.py", run_name="__main__")
    answer = capsys.readouterr().out
    prompt = ["--prompt", "What is 7 times 8?", "--max-new-tokens", "32"]
    assert main(["generate", "--checkpoint", "runs/mine", *prompt]) == 0
    assert answer == capsys.readouterr().out != "\n"
