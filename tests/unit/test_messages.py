"""Every message that a user can meet, taken from the source: one line, one style, and it says what to do.

Where, what, a semicolon, what to do: `--out runs/x exists; choose another output or pass --overwrite`. A demand (must,
give, supported) is both in one. What forwards another message is that one, with its place in front.

Read are the exceptions that end as a line, the texts that functions return to be one, and whatever begins with `error:`
where it is printed or ends a program.
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
# kinds of UserError
OF_USER_ERROR = {"ContextLengthError", "OtherVersionError"}
SHOWN_BY_THE_PREFLIGHT = {"MachineFailure"}
# Of the code that goes with an exported model, whoever uses that model meets these.
EXPORTED = "megafuser/conversion/fused/modeling_megafuser.py"
SHOWN_BY_PYTHON = {"ValueError"}
# (key, problem) and (place, problem, kind); their problem is what is told
# and of the server's answers: (status, message), (message)
SHOWN_IN_PARTS = {"InvalidValue": 1, "BadRecord": 1, "_Unusable": 0, "ApiError": 1, "invalid": 0}
DEMANDS = re.compile(
    r"\bmust\b|^give |\bgoe?s? (together )?with\b|\bgo together\b|; supported: |, or (set|pass|give) |\bexpected: |"
    r"\bthe nearest that "
)
# Behind the last semicolon stands what to do, which a statement is not: it begins with its subject.
STATEMENT = re.compile(
    r"(an?|the|its?|this|that|these|there|they|you|each|every|all|no|none|nothing|known|valid|at|of|in|on|after|before"
    r"|--\S+|\{…\})(?![\w-])|\S+ (is|are|was|were|has|have|had|does|can|cannot|could|will|would)\b"
)
# Functions whose texts are shown by whoever calls them.
TELLING = {
    "all_reduce.try_all_reduce",
    "error_messages._describe",
    "error_messages.key_problem",
    "error_messages.plain_data_problem",
    "error_messages.value_problem",
    "heartbeat.verdict",
    "hub._explain",
    "specialists.template_problem",
}
PRINTED_AS_ERROR = re.compile(r"^([-\w{…}]+: )?error: ")
# What is completed by its caller, with the key of the configuration that is to be corrected.
COMPLETED = {"{…} does not exist", "{…} cannot be read ({…})", "{…} is damaged, or no Parquet file ({…})"}
UNREAD = {"the client has gone"}
# What the miniature's checks found.
CHECKED = {"examples/miniature/longer.py", "examples/miniature/results.py"}
# What `megafuser plan` prints, which then says what would fit; no refusal.
PRINTED = {"does not fit: {…} of {…}"}
# Functions and variables whose texts are the half that says what to do, and what names the nearest valid name.
ADVISING = {"layout_checks._advice", "world._enough"}
REMEDIES = {"_REMEDIES", "remedy"}
ADVICE = {"_advice", "_enough", "hint", "nearest", *REMEDIES}
# A message that is made, and collected, elsewhere; by the name that it has there.
FORWARDED = {"_explain", "block", "error", "message", "problem", "refusal", "value", "value_problem"}

FORWARDS = re.compile(r"(^|: |; |, and |…} ?){…}$")


@dataclass(frozen=True)
class Message:
    """A message in the source; `{…}` where a value is put in."""

    place: str
    kind: str
    text: str
    values: tuple[ast.expr, ...]

    def __str__(self) -> str:
        return f"{self.place} {self.text!r}"


Constants = dict[str, ast.expr]


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def parts(node: ast.expr, constants: Constants) -> Iterator[ast.expr | str]:
    """The text and the values of a string as it is written, be it cut to a length."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from parts(value, constants)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from parts(node.left, constants)
        yield from parts(node.right, constants)
    elif isinstance(node, ast.FormattedValue):
        yield from [node.value] if isinstance(node.value, ast.Constant) else parts(node.value, constants)
    elif isinstance(node, ast.Subscript) and is_text(node.value):
        yield from parts(node.value, constants)
    elif isinstance(node, ast.Name) and node.id in constants:
        yield from parts(constants[node.id], constants)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        (pattern,) = parts(node.func.value, constants)
        if not isinstance(pattern, str):
            yield node
            return
        first, *others = pattern.split("{}")
        yield first
        for argument, text in zip(node.args, others, strict=True):
            yield argument
            yield text
    else:
        yield node


def either(node: ast.expr | None) -> Iterator[ast.expr]:
    """What is told in one case or the other, and behind its place."""
    if isinstance(node, ast.IfExp):
        yield from either(node.body)
        yield from either(node.orelse)
    elif isinstance(node, ast.BoolOp):
        yield from (one for value in node.values for one in either(value))
    elif isinstance(node, ast.Tuple):
        yield from either(node.elts[-1])
    elif node is not None:
        yield node


def messages_of(tree: ast.Module, place: str) -> Iterator[Message]:
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and is_text(node.value)
    }
    for node, kind in told(tree, place):
        for one in either(node):
            # what has this name may also be made elsewhere
            if is_text(one) or kind not in ("problem", "advice"):
                yield message(one, place, kind, constants)


def told(tree: ast.Module, place: str) -> Iterator[tuple[ast.expr | None, str]]:
    """What is shown, and how it comes to be."""
    kinds = SHOWN_BY_THE_COMMAND_LINE | OF_USER_ERROR | SHOWN_BY_THE_PREFLIGHT
    kinds |= SHOWN_BY_PYTHON if place == EXPORTED else set()
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and f"{Path(place).stem}.{node.name}" in TELLING:
            yield from ((one.value, "problem") for one in ast.walk(node) if isinstance(one, ast.Return))
        if isinstance(node, ast.FunctionDef) and f"{Path(place).stem}.{node.name}" in ADVISING:
            yield from ((one.value, "advice") for one in ast.walk(node) if isinstance(one, ast.Return))
        # what is raised below by its name
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name == "problem":
                yield node.value, "problem"
            elif name in REMEDIES:
                values = node.value.values if isinstance(node.value, ast.Dict) else [node.value]
                yield from ((value, "advice") for value in values)
        if is_text(node) and id(node) not in inner and PRINTED_AS_ERROR.match(message(node, place, "", {}).text):
            yield node, "error:"
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        whole = ast.unparse(node.func)
        if name in kinds or (name == "error" and "parser" in whole) or whole.endswith(".failures.append"):
            index = 0
        elif name in SHOWN_IN_PARTS:
            index = SHOWN_IN_PARTS[name]
        else:
            continue
        if len(node.args) > index:
            yield node.args[index], name


def message(node: ast.expr, place: str, kind: str, constants: Constants) -> Message:
    found = list(parts(node, constants))
    text = "".join(part if isinstance(part, str) else "{…}" for part in found)
    if kind == "error:":
        text = PRINTED_AS_ERROR.sub("", text).removesuffix("\n")
    return Message(f"{place}:{node.lineno}", kind, text, tuple(part for part in found if not isinstance(part, str)))


def files() -> list[Path]:
    return [
        *sorted((ROOT / "megafuser").rglob("*.py")),
        *sorted((ROOT / "tools").glob("*.py")),
        *(path for path in sorted((ROOT / "examples").rglob("*.py")) if "out" not in path.parts),
    ]


def all_messages() -> list[Message]:
    return [
        message
        for path in files()
        for message in messages_of(ast.parse(path.read_text("utf-8")), str(path.relative_to(ROOT)))
    ]


MESSAGES = all_messages()


def root_name(node: ast.expr) -> str:
    """`error` of `error` and `str(error)`; nothing of what is made of it, such as `error.strerror`."""
    if isinstance(node, ast.Call):
        function = getattr(node.func, "id", "")
        if function != "str":
            return str(function)
        node = node.args[0]
    if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in ADVICE:
        node = node.value
    if isinstance(node, ast.Attribute) and node.attr in FORWARDED:
        return node.attr
    return getattr(node, "id", "")


def names_of(message: Message) -> list[str]:
    return [root_name(value) for value in message.values]


def is_complete(message: Message) -> bool:
    """Whether it says what to do, or ends in a message that does."""
    text = message.text
    names = names_of(message)
    before, semicolon, last = text.rpartition("; ")
    given = last.startswith("{…}") and names[before.count("{…}")] in ADVICE
    if (given or not STATEMENT.match(last)) and (semicolon or message.kind == "advice"):
        return True
    return bool(DEMANDS.search(text)) or (bool(FORWARDS.search(text)) and names[-1] in FORWARDED)


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
    checked = names_of(message) == ["reason"] and message.place.partition(":")[0] in CHECKED
    if not checked and not is_complete(message) and text not in COMPLETED | UNREAD | PRINTED:
        found.append("does not say what to do")
    for value in message.values:
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") in ("repr", "vars", "locals", "id"):
            found.append("shows what is inside")
        if isinstance(value, ast.Name) and value.id in ("self", "options", "arguments", "config", "manifest"):
            found.append("shows what is inside")
    return found


def test_they_are_found() -> None:
    """As many as there are `raise UserError(`, and some of all kinds."""
    assert len(MESSAGES) > 500
    exceptions = SHOWN_BY_THE_COMMAND_LINE | OF_USER_ERROR | SHOWN_BY_THE_PREFLIGHT | SHOWN_BY_PYTHON
    exceptions |= set(SHOWN_IN_PARTS)
    assert {message.kind for message in MESSAGES} == exceptions | {"advice", "append", "error", "error:", "problem"}
    texts = [path.read_text("utf-8") for path in (ROOT / "megafuser").rglob("*.py")]
    raised = sum(len(re.findall(r"\bUserError\(", text)) for text in texts)
    found = [kind for text in texts for _, kind in told(ast.parse(text), "here") if kind == "UserError"]
    assert len(found) == raised - 1  # the class itself


def test_what_ends_a_program_says_that_it_is_an_error() -> None:
    """So that it is found, and listed above."""
    ends = [
        text
        for path in files()
        for text in re.findall(r'(?:\bsys\.exit|\bSystemExit)\(\s*f?"([^"]*)', path.read_text("utf-8"))
    ]
    assert len(ends) > 10
    assert [text for text in ends if not PRINTED_AS_ERROR.match(re.sub(r"\{\w+\}", "{…}", text))] == []


def test_all_functions_that_tell_are_there() -> None:
    defined = {
        f"{path.stem}.{name}"
        for path in files()
        for name in re.findall(r"^ *def (\w+)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    assert defined >= TELLING | ADVISING


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_message(message: Message) -> None:
    assert complaints(message) == [], message.text


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ('UserError("it is bad; mend it.")', "ends with a mark"),
        ('UserError(f"{path} is bad")', "does not say what to do"),
        ('UserError(f"{path} is bad: {reason}")', "does not say what to do"),
        ('UserError(f"{path}: {why}")', "does not say what to do"),
        ('UserError(f"{path} cannot be {value}")', "does not say what to do"),
        ('UserError(f"{path} is bad; it has {columns}")', "does not say what to do"),
        ('UserError(f"{path} is bad; {columns}")', "does not say what to do"),
        ('UserError("they are many; at most 3 are made at once")', "does not say what to do"),
        ('UserError("they are many; lines are short")', "does not say what to do"),
        ('invalid(f"{key}: {why}"[:500])', "does not say what to do"),
        ('sys.exit(f"data: error: {path} is bad")', "does not say what to do"),
        ('say(f"error: {host}: no word")', "does not say what to do"),
        ('report.failures.append(f"{kind}: {why}")', "does not say what to do"),
        ('MachineFailure("GPU 0 is wrong")', "does not say what to do"),
        ('problem = "is missing"', "does not say what to do"),
        ('remedy = "it is so"', "does not say what to do"),
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
