"""The reference of the Python API, from the sources as they stand: modules, public classes and functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

from generator.literals import ROOT, plain

_INTRODUCTION = """\
# Python API

Everything that the commands do can be called. Nothing is exported by `megafuser` itself; import from the module that
has it. Conversion, by one process:

```python
from megafuser.conversion.hf_to_mcore import import_specialist

for name in ("text", "code", "math"):
    import_specialist(f"models/{name}", f"checkpoints/{name}")
```

Both stages and a report; a stage that was interrupted goes on:

```python
from megafuser.config.load import load_config
from megafuser.report.command import run_report
from megafuser.training.stages import run_joint, run_warmup

if __name__ == "__main__":  # processes that tokenize import this file
    config = load_config("config.yaml", ["run_dir=runs/mine"])
    run_warmup(config)
    run_joint(config)
    run_report(config, "runs/mine", "report", max_samples=None, overwrite=False)
```

One answer:

```python
from megafuser.inference.open_model import Opening, open_checkpoint
from megafuser.inference.prompts import Message
from megafuser.inference.request import Call, Request
from megafuser.inference.scheduler import Scheduler

with open_checkpoint(Opening("runs/mine")) as model, model.engine.following() as leads:
    if leads:
        prompts = model.prompts.chat([Message("user", "What is 7 times 8?")])
        request = Request(Call(prompts, max_tokens=32), tokenizer=model.tokenizer, end_id=model.end_id)
        scheduler = Scheduler(model.engine, max_running=1)
        scheduler.add(request)
        scheduler.run()
        print(request.text.text)
```

These are programs of one process. Under `torchrun` or `srun` every rank runs the same program, and each of
`run_warmup`, `run_joint`, `run_report` and `open_checkpoint` makes process groups anew, for which a launcher's port
serves but once: give each a program of its own. What the commands say on standard error,
`megafuser.runtime.logs.configure_logs(rank)` turns on. What a user can mend is a `megafuser.errors.UserError`; a stage
that was asked to stop raises `StoppedEarly` of the same module, and a full disk becomes a `NotSavedError`.

Names that begin with an underscore are not listed, and may change at any time. Until version 1.0 the others may change,
too, with a line in the changelog. This page is made from the sources whenever the site is built.
"""


def page() -> str:
    """The page, a section for each package and a part for each module."""
    sections = []
    for package in sorted(path.parent for path in (ROOT / "megafuser").rglob("__init__.py")):
        modules = [path for path in sorted(package.glob("*.py")) if path.name not in ("__init__.py", "__main__.py")]
        name = ".".join(package.relative_to(ROOT).parts)
        summary = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
        sections.append(f"## {name}\n\n{plain(summary)}\n")
        sections += [_module(path, name) for path in modules]
    return "\n".join([_INTRODUCTION, *sections])


def _module(path: Path, package: str) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    link = f"[source](../../{path.relative_to(ROOT).as_posix()})"
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    lines = [f"### {package}.{path.stem}\n", f"{plain(summary)} {link}\n"]
    lines += [f"- `{signature}`: {plain(said)}" for signature, said in _public(tree)]
    return "\n".join(lines) + "\n"


def _public(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            said = (ast.get_docstring(node) or "").split("\n")[0]
            if isinstance(node, ast.ClassDef):
                yield f"class {node.name}", said
            else:
                returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                yield f"{node.name}({ast.unparse(node.args)}){returns}", said
