"""Every message that a user can meet, taken from the source: one line, one style, and it says what to do.

Where, what, a semicolon, what to do: `--out runs/x exists; choose another output or pass --overwrite`. A demand (must,
give, supported) is both in one. What forwards another message is that one, with its place in front.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megafuser import errors
from megafuser.cli.main import main

ROOT = Path(__file__).parents[2]
SHOWN_BY_THE_COMMAND_LINE = {"UserError", "NotSavedError", "TrainingFailedError", "ArgumentTypeError"}
# (key, problem) and (place, problem, kind); their problem is what is told
# and of the server's answers: (status, message), (message)
SHOWN_IN_PARTS = {"InvalidValue": 1, "BadRecord": 1, "_Unusable": 0, "ApiError": 1, "invalid": 0}
DEMANDS = re.compile(
    r"; \S|\bmust\b|^give |\bgoe?s? (together )?with\b|\bgo together\b|; supported: |, or (set|pass|give) |\bexpected: "
)
# What is completed by its caller, with the key of the configuration that is to be corrected.
COMPLETED = {"{…} does not exist", "{…} cannot be read ({…})", "{…} is damaged, or no Parquet file ({…})"}
UNREAD = {"the client has gone"}
# What `megafuser plan` prints, which then says what would fit; no refusal.
PRINTED = {"does not fit: {…} of {…}"}
# A message that another one made, or the half that says what to do; by the name that it has there.
FORWARDED = {"encoded", "error", "problem"}


@dataclass(frozen=True)
class Message:
    """A message in the source; `{…}` where a value is put in."""

    place: str
    kind: str
    text: str
    values: tuple[ast.expr, ...]

    def __str__(self) -> str:
        return f"{self.place} {self.text!r}"


def parts(node: ast.expr) -> Iterator[ast.expr | str]:
    """The text and the values of a string as it is written."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from parts(value)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from parts(node.left)
        yield from parts(node.right)
    elif isinstance(node, ast.FormattedValue):
        yield node.value
    else:
        yield node


def messages_of(tree: ast.AST, place: str) -> Iterator[Message]:
    for node in ast.walk(tree):
        # what is raised below by its name
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "problem":
            either = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
            for value in either:
                if isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and value.value):
                    yield message(value, place, "problem")
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if (name == "error" and "parser" in ast.unparse(node.func)) or name in SHOWN_BY_THE_COMMAND_LINE:
            index = 0
        elif name in SHOWN_IN_PARTS:
            index = SHOWN_IN_PARTS[name]
        else:
            continue
        if len(node.args) > index:
            yield message(node.args[index], place, name)


def message(node: ast.expr, place: str, kind: str) -> Message:
    found = list(parts(node))
    text = "".join(part if isinstance(part, str) else "{…}" for part in found)
    return Message(f"{place}:{node.lineno}", kind, text, tuple(part for part in found if not isinstance(part, str)))


def all_messages() -> list[Message]:
    files = [*sorted((ROOT / "megafuser").rglob("*.py")), *sorted((ROOT / "tools").glob("*.py"))]
    return [
        message
        for path in files
        for message in messages_of(ast.parse(path.read_text("utf-8")), str(path.relative_to(ROOT)))
    ]


MESSAGES = all_messages()


def root_name(node: ast.expr) -> str:
    """`error` of `error`, `str(error)`, `_first_line(error)` and `error.strerror`."""
    while True:
        if isinstance(node, ast.Call) and node.args:
            node = node.args[0]
        elif isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        else:
            return getattr(node, "id", "")


def complaints(message: Message) -> list[str]:
    """What a message does not keep to."""
    text, found = message.text, []
    if "\n" in text:
        found.append("is more than one line")
    if re.search(r"[.!:;,]$", text) and not text.endswith("…"):
        found.append("ends with a mark")
    if re.search(r"[a-z)]\. [A-Z]", text):
        found.append("is more than one sentence")
    if "  " in text or text != text.strip():
        found.append("has blanks for nothing")
    if re.search(r"(?i)\b(?<!--on-)(error|exception|invalid|illegal|oops|sorry|please)\b", text):
        found.append("says that there is an error, and not which")
    if re.match(r"[A-Z][a-z]+ (?!Engine|Apex)", text) and not text.startswith("NVIDIA"):
        found.append("begins with a capital")
    forwards = not text.strip("{…}: ") or (text.endswith("{…}") and root_name(message.values[-1]) in FORWARDED)
    forwards = forwards or "nearest" in map(root_name, message.values)
    if not DEMANDS.search(text) and not forwards and text not in COMPLETED | UNREAD | PRINTED:
        found.append("does not say what to do")
    for value in message.values:
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") in ("repr", "vars", "locals", "id"):
            found.append("shows what is inside")
        if isinstance(value, ast.Name) and value.id in ("self", "options", "arguments", "config", "manifest"):
            found.append("shows what is inside")
    return found


def test_they_are_found() -> None:
    """As many as there are `raise UserError(`, and some of all kinds."""
    assert len(MESSAGES) > 400
    assert {message.kind for message in MESSAGES} == SHOWN_BY_THE_COMMAND_LINE | set(SHOWN_IN_PARTS) | {
        "error",
        "problem",
    }
    raised = sum(
        len(re.findall(r"\bUserError\(", path.read_text("utf-8"))) for path in (ROOT / "megafuser").rglob("*.py")
    )
    told = [message for message in MESSAGES if message.kind == "UserError" and message.place.startswith("megafuser")]
    assert len(told) == raised - 1  # the class itself


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_message(message: Message) -> None:
    assert complaints(message) == [], message.text


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ('UserError("it is bad; mend it.")', "ends with a mark"),
        ('UserError(f"{path} is bad")', "does not say what to do"),
        ('UserError(f"{path} is bad: {reason}")', "does not say what to do"),
        ('UserError("it is bad;\\n or; mend it")', "is more than one line"),
        ('UserError("it is bad. Mend it; now")', "is more than one sentence"),
        ('UserError(f"Bad {path}; mend it")', "begins with a capital"),
        ('UserError("invalid value; mend it")', "says that there is an error, and not which"),
        ('UserError(f"{config} is bad; mend it")', "shows what is inside"),
        ('InvalidValue("lr", f"is {lr}")', "does not say what to do"),
        ('parser.error("no")', "does not say what to do"),
    ],
)
def test_what_is_complained_of(source: str, complaint: str) -> None:
    (message,) = messages_of(ast.parse(source), "here")
    assert complaints(message) == [complaint]


def shell_messages() -> list[str]:
    """What the scripts say before they end."""
    scripts = [*ROOT.glob("slurm/*.sh"), *ROOT.glob("examples/*/*.sh"), *ROOT.glob("tools/*.sh")]
    text = "\n".join(script.read_text("utf-8") for script in scripts)
    return [found for found in re.findall(r'(?:\bdie "|\berror: )([^"]+)"', text) if found != "$*"]


def test_the_scripts_say_what_to_do() -> None:
    messages = shell_messages()
    assert len(messages) > 12
    for text in messages:
        assert re.search(r"[;:,] (\w+ )?(submit|set|unset|see|install|correct)", text), text


def test_what_is_raised_is_shown_by_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list above has every kind that ends as a line."""
    shown = {name for name in vars(errors) if name.endswith("Error")}
    assert shown == SHOWN_BY_THE_COMMAND_LINE - {"ArgumentTypeError"}
    for name in sorted(shown):
        error = getattr(errors, name)("where: what; what to do")

        def fail(*_: object, told: Exception = error) -> None:
            raise told

        monkeypatch.setattr("megafuser.config.load.load_config", fail)
        assert main(["plan", "--config", "config.yaml"]) != 0
        assert capsys.readouterr().err == "megafuser: error: where: what; what to do\n"
