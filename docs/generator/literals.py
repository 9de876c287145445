"""Names that the code writes, read from its source: keys of dictionaries, and what metrics are called."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def written_keys(path: str, function: str) -> list[str]:
    """The keys of all dictionaries that a function makes, in order; `{…}` stands for what an f-string puts in.

    Args:
        path: of the module, in the repository.
        function: its name.

    Raises:
        LookupError: the module has no such function.
    """
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return list(dict.fromkeys(key for _, key in sorted(_keys(node))))
    raise LookupError(f"{path} has no function {function}")


def _keys(tree: ast.AST) -> Iterator[tuple[tuple[int, int], str]]:
    for node in ast.walk(tree):
        keys = node.keys if isinstance(node, ast.Dict) else [node.key] if isinstance(node, ast.DictComp) else []
        for key in keys:
            if isinstance(key, ast.Constant):
                yield (key.lineno, key.col_offset), str(key.value)
            elif isinstance(key, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "{…}" for part in key.values)
                yield (key.lineno, key.col_offset), "".join(parts)


def named_calls(path: str, functions: tuple[str, ...]) -> list[tuple[str, str]]:
    """The first two arguments, a name and a text, of every call of some functions."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        if isinstance(node, ast.Call) and name in functions:
            first, second = node.args[:2]
            if isinstance(first, ast.Constant) and isinstance(second, ast.Constant):
                found.append((str(first.value), str(second.value)))
    return found


def described(names: list[str], meanings: dict[str, str], what: str) -> list[tuple[str, str]]:
    """Each name with its meaning.

    Raises:
        LookupError: the code has a name without a meaning here, or a meaning is of a name that the code has no more.
    """
    if missing := [name for name in names if name not in meanings]:
        raise LookupError(f"{what}: no meaning for {', '.join(missing)}; write it in docs/generator")
    if gone := [name for name in meanings if name not in names]:
        raise LookupError(f"{what}: {', '.join(gone)} is no more; take it away in docs/generator")
    return [(name, meanings[name]) for name in names]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table whose first column is code."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for first, *rest in rows:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in (f'`{first}`', *rest))} |")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text in which angles, stars and brackets are no Markdown; code stays code."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        for sign in "<>*_[]":
            parts[index] = parts[index].replace(sign, f"\\{sign}")
    return "`".join(parts)
