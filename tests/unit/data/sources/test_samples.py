"""Samples of JSONL files, and the mistakes that are told with file and line."""

import json
from pathlib import Path

import pytest

from megafuser.config.data import SourceConfig
from megafuser.data.sources.records import Block
from megafuser.data.sources.samples import Sample, parse_block
from megafuser.errors import UserError
from tests.small_domain import read_samples


def write(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return str(path)


def chat(*pairs: tuple[str, str], **fields: object) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **fields}


def test_instruction_and_chat_forms_keep_order_across_files(tmp_path):
    first = write(
        tmp_path / "a.jsonl",
        {"instruction": "Qé?", "response": " A"},
        {"instruction": " P", "response": "B", "system": "S", "id": 7},
        "",
        {"instruction": "Q", "response": "C", "system": None, "extra": [1]},
    )
    second = write(
        tmp_path / "b.jsonl",
        chat(("system", "S"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2"), id="x"),
        chat(("user", "u"), ("assistant", "a"), system="T"),
        chat(("system", ""), ("user", "u"), ("assistant", "a")),
    )
    assert read_samples([first, second]) == [
        Sample((("Qé?", " A"),), None, "a.jsonl:1", f"{first}:1"),
        Sample(((" P", "B"),), "S", "7", f"{first}:2", named=True),
        Sample((("Q", "C"),), None, "a.jsonl:4", f"{first}:4"),
        Sample((("u1", "a1"), ("u2", "a2")), "S", "x", f"{second}:1", named=True),
        Sample((("u", "a"),), "T", "b.jsonl:2", f"{second}:2"),
        Sample((("u", "a"),), None, "b.jsonl:3", f"{second}:3"),
    ]


def test_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"instruction": "q", "response": "a"}\r\n')
    assert read_samples([str(path)])[0].turns == (("q", "a"),)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "not an object"),
        ("null", "not an object"),
        ({"response": "a"}, "lacks `instruction`"),
        ({"instruction": " \t", "response": "a"}, "`instruction` is empty; give an instruction"),
        ({"instruction": "", "response": "a"}, "`instruction` is empty"),
        ({"instruction": None, "response": "a"}, "`instruction` must be a string, not null"),
        ({"problem": "q", "response": "a"}, "the nearest field that is there is 'problem'; name it in the source's"),
        ({"instruction": "q", "responses_": "a"}, "nearest field that is there is 'responses_'"),
        ({"instruction": "q", "output": "a"}, "`fields: {response: output}`"),
        ({"conversations": [], "n": 1}, "`fields: {messages: conversations}`"),
        ({}, "lacks `instruction`; it has no field"),
        ({"messages": None}, "`messages` must be a non-empty list"),
        (chat(("user", " "), ("assistant", "a")), "messages[0]: `content` is empty; give an instruction"),
        (chat(("user", "u"), ("assistant", "a"), ("user", ""), ("assistant", "b")), "messages[2]: `content` is empty"),
        ({"messages": [{"from": "user", "content": "u"}]}, "messages[0]: lacks `role`; the nearest"),
        ('{"instruction": "q", "response": "a", "id": "\\ud800"}', "`id` has half of a surrogate pair"),
        ('{"instruction": "q", "response": "a"', "not JSON"),
        ('{"instruction": "q", "response": %s}' % ("1" * 5000), "not JSON"),
        ({"instruction": "q"}, "lacks `response`"),
        ({"instruction": 3, "response": "a"}, "`instruction` must be a string, not number"),
        ({"instruction": "q", "response": ["a"]}, "`response` must be a string, not list"),
        ({"instruction": "q", "response": " \n"}, "`response` is empty"),
        ({"instruction": "q", "response": "a", "system": 1}, "`system` must be a string"),
        ({"instruction": "q", "response": "a", "id": [1]}, "`id` must be"),
        ({"instruction": "q", "response": "a", "id": True}, "`id` must be"),
        ('{"instruction": "q", "response": "\\ud800"}', "surrogate"),
        ({"messages": "hello"}, "`messages` must be a non-empty list"),
        ({"messages": []}, "`messages` must be a non-empty list"),
        ({"messages": ["hello"]}, "messages[0] is string, not an object"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}, "messages[0]: lacks `content`"),
        (chat(("user", "u"), ("assistant", "")), "messages[1]: `content` is empty"),
        (chat(("user", "u")), "must end with an assistant"),
        (chat(("system", "s")), "must end with an assistant"),
        (chat(("user", "u"), ("assistant", "a"), ("user", "v")), "must end with an assistant"),
        (chat(("user", "u"), ("user", "v"), ("assistant", "a")), "messages[1] has role 'user' where 'assistant'"),
        (chat(("assistant", "a"), ("user", "u")), "messages[0] has role 'assistant' where 'user'"),
        (chat(("user", "u"), ("system", "s"), ("assistant", "a")), "messages[1] has role 'system'"),
        (chat(("system", "s"), ("user", "u"), ("assistant", "a"), system="t"), "both `system` and a system message"),
        (chat(("user", "u"), ("assistant", "a"), response="b"), "both `messages` and"),
    ],
)
def test_a_bad_line_is_told_with_file_and_line(tmp_path, line, told):
    path = write(tmp_path / "bad.jsonl", {"instruction": "q", "response": "a"}, line)
    with pytest.raises(UserError) as caught:
        read_samples([path])
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and told in message and "\n" not in message


SHARE_GPT = {"messages": "conversations", "role": "from", "content": "value"}


@pytest.mark.parametrize(
    ("record", "fields", "turns"),
    [
        ({"problem": "q", "solution": "a"}, {"instruction": "problem", "response": "solution"}, (("q", "a"),)),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            SHARE_GPT,
            (("q", "a"),),
        ),
        # The form whose fields are named is meant, where a line has both.
        (
            chat(("user", "u"), ("assistant", "b"), prompt="q", out="a"),
            {"instruction": "prompt", "response": "out"},
            (("q", "a"),),
        ),
        (
            {
                "instruction": "q",
                "response": "a",
                "chat": [{"role": "user", "content": "u"}, {"role": "gpt", "content": "b"}],
            },
            {"messages": "chat"},
            (("u", "b"),),
        ),
        # Rows of a table have every column.
        (chat(("user", "u"), ("assistant", "b"), instruction=None, response=None), {}, (("u", "b"),)),
        ({"messages": None, "instruction": "q\0", "response": "a\0"}, {}, (("q\0", "a\0"),)),
    ],
)
def test_fields_may_have_other_names(tmp_path, record, fields, turns):
    path = write(tmp_path / "a.jsonl", record)
    (sample,) = read_samples([path], fields)
    assert sample.turns == turns
    assert (
        read_samples([SourceConfig(path=path, fields=fields)], {"response": "nowhere"} if fields else None)[0] == sample
    )


def test_bad_records_keep_their_order_and_have_kinds():
    lines = [
        b'{"instruction": "q", "response": "a", "id": 3}',
        b" ",
        b"\xff\xfe",
        b"{",
        b'{"instruction": "q", "response": ""}',
    ]
    parsed = parse_block(Block("d/f", 5, lines, "line"), {})
    assert parsed[0] == Sample((("q", "a"),), None, "3", "d/f:5", named=True)
    assert [(one.where, one.kind) for one in parsed[1:]] == [
        ("d/f:7", "not UTF-8"),
        ("d/f:8", "not JSON"),
        ("d/f:9", "empty response"),
    ]
    assert str(parsed[3]) == "d/f:9: `response` is empty; give a response to learn from, or remove the sample"
    (row,) = parse_block(Block("o/n", 9, [{"instruction": "q", "response": b"a"}], "row"), {})
    assert str(row) == "o/n: row 9: `response` must be a string, not binary"


def test_bytes_that_are_no_utf8_are_told(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"instruction": "q", "response": "\xe9"}\n')
    with pytest.raises(UserError, match=r"latin\.jsonl:1: not UTF-8"):
        read_samples([str(path)])


def test_missing_empty_and_unlisted_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read_samples([str(tmp_path / "none.jsonl")])
    with pytest.raises(UserError, match="cannot be read"):
        read_samples([str(tmp_path)])
    for content in ("", "\n \n"):
        (tmp_path / "empty.jsonl").write_text(content)
        with pytest.raises(UserError, match=r"empty\.jsonl is empty"):
            read_samples([str(tmp_path / "empty.jsonl")])
