"""Samples of JSONL files, and the mistakes that are told with file and line."""

import json
from pathlib import Path

import pytest

from megafuser.data.sources.samples import Sample, read_samples
from megafuser.errors import UserError


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
