"""What the documentation tells users to type: programs, options and keys exist, and what a block needs is said."""

import ast
from pathlib import Path

import pytest
import yaml

from megafuser.config.error_messages import key_problem
from megafuser.data.recipe.load import load_recipe
from tests.docs.pages import PAGES, Block, blocks, inline_code, name
from tests.parallel.launch import ROOT

NEEDS = {"network", "GPU", "cluster with GPUs"}
SHELL = ("bash", "sh", "console")
EVERY = [block for page in PAGES for block in blocks(page)]
OURS = ("megafuser ", "tools/", "examples/", "python ", "torchrun ", "sbatch ", "bash ", "docker ", "MEGAFUSER_")


def _commands(block: Block) -> list[str]:
    """A shell block's commands; of other blocks the lines behind a prompt."""
    from tests.docs.command_lines import command_lines

    if block.language in SHELL:
        return list(command_lines(block.text))
    shown = "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("$ "))
    return list(command_lines(shown))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_in_a_block_can_be_typed(page: Path) -> None:
    from tests.docs.command_lines import Wrong, check

    problems = []
    for block in blocks(page):
        for command in _commands(block):
            try:
                # What is shown behind a prompt, with what it said, is an excerpt.
                check(command, block.needs or frozenset(NEEDS if block.language not in SHELL else ()))
            except Wrong as problem:
                problems.append(f"{block}: {command}: {problem}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_in_a_sentence_has_options_that_exist(page: Path) -> None:
    from tests.docs.command_lines import Wrong, check

    problems = []
    for code in inline_code(page):
        if code.startswith(OURS) and "…" not in code and " " in code:
            from tests.docs.command_lines import command_lines

            for command in command_lines(code):
                try:
                    check(command, frozenset(NEEDS), whole=False)
                except Wrong as problem:
                    problems.append(f"{code}: {problem}")
    assert not problems, "\n".join(problems)


# Where the suite runs each program of ours, with arguments of its own: the file has its name as an argument.
RUN_BY = {
    "megafuser warmup": "tests/parallel/test_checkpoints.py",
    "megafuser joint": "tests/parallel/test_checkpoints.py",
    "megafuser plan": "tests/cli/test_examples_plan.py",
    "megafuser reshard": "tests/parallel/test_checkpoints.py",
    "megafuser status": "tests/cli/test_status.py",
    "megafuser report": "tests/cli/test_report.py",
    "megafuser generate": "tests/cli/generating.py",
    "megafuser serve": "tests/cli/test_serve.py",
    "megafuser evaluate": "tests/cli/test_evaluate.py",
    "megafuser config": "tests/cli/test_config.py",
    "megafuser preflight": "tests/unit/preflight/test_command.py",
    "tests.parallel.layout_table": "tests/docs/test_expected_output.py",
    "tools/build_data.py": "tests/cli/test_build_data.py",
    "tools/convert_hf_to_mcore.py": "tests/cli/test_convert.py",
    "tools/convert_mcore_to_hf.py": "tests/cli/test_export.py",
    "tools/decontaminate.py": "tests/cli/test_decontaminate.py",
    "tools/prepare_data.py": "tests/cli/test_prepare_data.py",
} | {
    f"benchmarks/{name}.py": "tests/unit/benchmarks/test_runs.py"
    for name in (
        "checkpoint_stall", "decode", "fusion_step", "mixture_loss", "scaling", "serve", "step_overheads",
    )
}  # fmt: skip


def test_every_program_that_needs_nothing_is_run_by_a_test() -> None:
    from tests.docs.command_lines import program_of

    unmarked = {program_of(command) for block in EVERY if not block.needs for command in _commands(block)}
    ours = unmarked - {None}
    assert len(ours) > 12 and ours <= set(RUN_BY)
    for program, path in RUN_BY.items():
        name = program.removeprefix("megafuser ").removeprefix("tools/").removeprefix("benchmarks/")
        assert name.removesuffix(".py") in arguments(ROOT / path), f"{path} does not run {program}"


def arguments(path: Path) -> set[str]:
    """Texts that stand in calls, lists and as keys in a file, not those in names, docstrings and comments."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            found += node.args
        elif isinstance(node, ast.List | ast.Tuple):
            found += node.elts
        elif isinstance(node, ast.Dict):
            found += [key for key in node.keys if key is not None]
    return {each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_what_blocks_need_is_said_in_the_same_words() -> None:
    assert {need for block in EVERY for need in block.needs} <= NEEDS
    assert sum(bool(_commands(block)) for block in EVERY) > 40


YAML = [block for block in EVERY if block.language in ("yaml", "yml")]
RECIPES = [block for block in YAML if block.text.startswith("# a recipe\n")]


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_every_recipe_can_be_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(block.text)
    assert load_recipe(tmp_path / "data.yaml").domains


@pytest.mark.parametrize("block", [block for block in YAML if block not in RECIPES], ids=str)
def test_every_key_in_a_yaml_block_is_one_of_the_configuration(block: Block) -> None:
    for key in _leaves(yaml.safe_load(block.text)):
        assert key_problem(key) is None, ".".join(key)


def _leaves(tree: object, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, (*above, str(key)))]
    if isinstance(tree, list):
        return [leaf for index, value in enumerate(tree) for leaf in _leaves(value, (*above, str(index)))]
    return [above]


@pytest.mark.parametrize("block", [block for block in EVERY if block.language == "python"], ids=str)
def test_every_python_block_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize(
    "command",
    [
        "megafuser warmup --confg config.yaml",
        "megafuser warmup",
        "megafuser train --config config.yaml",
        "megafuser joint --config config.yaml joint.stepz=3",
        "megafuser joint --config config.yaml stray",
        "tools/convert_hf_to_mcore.py --hf a --out b --verify some",
        "tools/convert.py --hf a",
        "torchrun --nproc-per-node 2 -m megafuser report --config c --out d",
        "sbatch slurm/joint.sh --config config.yaml",
        "bash examples/quickstart/start.sh",
        "bash examples/quickstart/run.sh",
        "megafuser evaluate --checkpoint runs/mine --tasks gsm8k --out evaluation",
        "torchrun --nproc-per-node 2 -m megafuser evaluate --checkpoint runs/mine --tasks gsm8k --out evaluation",
        "pip install megafuser",
        "python benchmarks/convert.py --no-such-option",
        "rm -rf runs",
    ],
)
def test_a_command_that_cannot_work_is_found(command: str) -> None:
    from tests.docs.command_lines import Wrong, check

    with pytest.raises(Wrong):
        check(command, frozenset())
