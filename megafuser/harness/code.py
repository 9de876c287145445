"""Whether generated code does what its tests say; every program runs in the sandbox that the command has allowed.

The harness's own code tasks load the metric `code_eval` of Hugging Face's `evaluate`, which comes from the hub and runs
programs in the evaluating process. While code is allowed, loading it gives `CodeEval` instead; while it is not, loading
it is refused. The sandbox itself is `harness.sandbox`.
"""

import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from math import comb
from typing import Any

import evaluate

from megafuser.errors import UserError
from megafuser.harness.sandbox import Sandbox

_SANDBOX: ContextVar[Sandbox | None] = ContextVar("sandbox", default=None)
_HUB_METRIC = "code_eval"


@contextmanager
def code_allowed(sandbox: Sandbox | None) -> Iterator[None]:
    """Says where generated code runs in the meantime; None: nowhere."""
    token = _SANDBOX.set(sandbox)
    original = evaluate.load

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        return CodeEval(allowed_sandbox()) if path == _HUB_METRIC else original(path, *arguments, **options)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original
        _SANDBOX.reset(token)


def allowed_sandbox() -> Sandbox:
    """Where generated code runs; metrics of local tasks ask for it.

    Raises:
        UserError: it may not.
    """
    sandbox = _SANDBOX.get()
    if sandbox is None:
        raise UserError("the task runs code that the model writes; give --allow-code-execution to run it in a sandbox")
    return sandbox


def passes(program: str, sandbox: Sandbox | None = None) -> bool:
    """Whether a program with its tests runs to its end; one that leaves early with exit code 0 does not pass."""
    mark = secrets.token_hex(16)
    outcome = (sandbox or allowed_sandbox()).run(f"{program}\n\nprint('\\n{mark}')\n")
    return outcome.code == 0 and outcome.output.decode(errors="replace").rstrip().endswith(mark)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k programs passes, of so many drawn (Chen et al., 2021, equation 1)."""
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


class CodeEval:
    """`code_eval` as the harness's tasks use it."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Runs programs there."""
        self._sandbox = sandbox

    def compute(
        self, *, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1,), **_: Any
    ) -> tuple[dict[str, float], dict[int, list[bool]]]:
        """Runs each problem's programs, with its tests behind them.

        Args:
            references: tests, one of each problem.
            predictions: programs, of each problem.
            k: of pass@k.

        Returns:
            `pass@k` for each k that all problems have programs for, and what passed by problem.
        """
        programs = [f"{one}\n{tests}" for tests, own in zip(references, predictions, strict=True) for one in own]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            passed = iter(list(pool.map(lambda program: passes(program, self._sandbox), programs)))
        found = {index: list(itertools.islice(passed, len(own))) for index, own in enumerate(predictions)}
        scores = {
            f"pass@{most}": sum(pass_at_k(len(own), sum(own), most) for own in found.values()) / len(found)
            for most in k
            if all(len(own) >= most for own in found.values())
        }
        return scores, found
