"""What the API answers, compared with the engine's own tests' reference and with OpenAI's documented forms."""

import json
import math
from typing import Any

import pytest
import schemathesis

from megafuser.inference.prompts import Message
from megafuser.serving.response_schema import TopLogprob
from megafuser.serving.stream import _event
from tests.unit.inference.case import Dense, make_prompts
from tests.unit.serving.case import NAME

TEXT = "What is the sum of three and four?"
LAST_WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}

# forms of what is sent: keys in their order, a list's one entry for all of its, a type for any value of it
TOP = {"token": str, "logprob": float, "bytes": [int]}
CHAT_LOGPROBS = {"content": [TOP | {"top_logprobs": [TOP]}], "refusal": None}
COMPLETION_LOGPROBS = {"tokens": [str], "token_logprobs": [float], "top_logprobs": [dict], "text_offset": [int]}
GATE = {"gate": {"specialists": [str], "weights": [[float]]}}
USAGE = {"usage": {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int}}


@pytest.fixture(scope="module")
def dense(root, server):
    return Dense(root, server.serving.service.model.engine._model)


def test_greedy_answers_are_the_references(root, server, dense):
    encoder = make_prompts(root)
    for text in (TEXT, "print(i)", "é ☃ fox"):
        expected = dense.greedy(encoder.chat([Message("user", text)]), 10)
        found = server.chat(text, temperature=0, max_tokens=10)
        assert found["choices"][0]["message"]["content"] == encoder.tokenizer.decode(expected, skip_special_tokens=True)
        assert found["choices"][0]["finish_reason"] == ("stop" if expected[-1] == 2 else "length")
        assert found["usage"]["completion_tokens"] == len(expected)
        assert found["model"] == NAME
        raw = dense.greedy(encoder.raw(text, 3), 10)
        completion = server.complete(prompt=text, temperature=0, max_tokens=10)
        assert completion["choices"][0]["text"] == encoder.tokenizer.decode(raw, skip_special_tokens=True)
        assert completion["usage"]["prompt_tokens"] == len(encoder.raw(text, 3)[0])


def test_an_echo_scores_the_prompt(root, server, dense):
    ids = list(make_prompts(root).raw("The quick brown fox jumps over", 3)[0])
    logits, weights = dense.logits([ids] * 3, len(ids))
    scores = logits.log_softmax(dim=-1)
    found = server.complete(
        prompt=[ids, ids[:4]], echo=True, logprobs=2, max_tokens=1, temperature=0, gate=True, model=NAME
    )
    choice = found["choices"][0]
    logprobs = choice["logprobs"]
    expected = [*scores[range(len(ids) - 1), ids[1:]].tolist(), float(scores[-1].max())]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert logprobs["top_logprobs"][0] is None
    for row, top in zip(scores, logprobs["top_logprobs"][1:], strict=True):
        assert list(top.values())[:2] == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)
    for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert own in top.values()  # lm-eval compares them without a tolerance
    assert "".join(logprobs["tokens"][1:-1]) == "The quick brown fox jumps over"
    assert choice["text"].startswith("The quick brown fox jumps over")
    assert logprobs["tokens"][0] == "<s>"
    assert logprobs["text_offset"][:2] == [0, 0]  # the text does not show BOS
    for token, offset in zip(logprobs["tokens"][1:-1], logprobs["text_offset"][1:-1], strict=True):
        assert choice["text"][offset : offset + len(token)] == token
    assert logprobs["text_offset"][-1] == len("The quick brown fox jumps over")
    assert choice["gate"]["weights"][0] is None
    for row, own in zip(weights.tolist(), choice["gate"]["weights"][1:], strict=True):
        assert own == pytest.approx(row, abs=1e-4)
    assert found["choices"][1]["logprobs"]["token_logprobs"][1:4] == pytest.approx(expected[:3], abs=1e-4)
    only = server.complete(prompt=ids, echo=True, logprobs=0, max_tokens=0)
    assert only["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(expected[:-1], abs=1e-4)
    assert only["choices"][0]["finish_reason"] == "length"


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def form(kind: str, *choice: dict[str, Any]) -> dict[str, Any]:
    """An answer's, of a choice or of none."""
    return {"id": str, "object": kind, "created": int, "model": NAME, "choices": list(choice)}


def assert_form(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_form(found[key], value)
    elif isinstance(expected, list):
        assert isinstance(found, list) and bool(found) == bool(expected)
        for value in found:
            assert_form(value, expected[0])
    elif isinstance(expected, type):
        assert type(found) is expected
    else:
        assert found == expected


def ask_chat(server, **body):
    messages = [{"role": "user", "content": TEXT}]
    return server.post("/v1/chat/completions", messages=messages, max_tokens=12, seed=3, **body)


def ask_completion(server, **body):
    return server.post("/v1/completions", prompt=TEXT, max_tokens=12, temperature=0, **body)


def test_the_form_of_chats(server):
    everything = {"logprobs": True, "top_logprobs": 2, "gate": True}
    start = {"index": 0, "message": {"role": "assistant", "content": str, "refusal": None}}
    bare = start | {"logprobs": None, "finish_reason": str}
    assert_form(ask_chat(server).json(), form("chat.completion", bare) | USAGE)
    full = start | {"logprobs": CHAT_LOGPROBS, "finish_reason": str} | GATE
    assert_form(ask_chat(server, **everything).json(), form("chat.completion", full) | USAGE)

    kind, end = "chat.completion.chunk", {"logprobs": None, "finish_reason": None}
    opening = {"index": 0, "delta": {"role": "assistant", "content": ""}} | end
    closing = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": str}
    first, *others, last = events(ask_chat(server, stream=True))
    assert_form(first, form(kind, opening))
    assert_form(others, [form(kind, {"index": 0, "delta": {"content": str}} | end)])
    assert_form(last, form(kind, closing))
    piece = {"index": 0, "delta": {"content": str}, "logprobs": CHAT_LOGPROBS, "finish_reason": None} | GATE
    first, *others, last, usage = events(ask_chat(server, **everything, **LAST_WITH_USAGE))
    assert_form(first, form(kind, opening) | {"usage": None})
    assert_form(others, [form(kind, piece) | {"usage": None}])
    assert_form(last, form(kind, closing) | {"usage": None})
    assert_form(usage, form(kind) | USAGE)


def test_the_form_of_completions(server):
    everything = {"logprobs": 2, "gate": True}
    kind, start = "text_completion", {"index": 0, "text": str}
    bare = start | {"logprobs": None, "finish_reason": str}
    assert_form(ask_completion(server).json(), form(kind, bare) | USAGE)
    full = start | {"logprobs": COMPLETION_LOGPROBS, "finish_reason": str} | GATE
    assert_form(ask_completion(server, **everything).json(), form(kind, full) | USAGE)

    *others, last = events(ask_completion(server, stream=True))
    assert_form(others, [form(kind, bare | {"finish_reason": None})])
    assert_form(last, form(kind, bare))
    *others, last, usage = events(ask_completion(server, **everything, **LAST_WITH_USAGE))
    assert_form(others, [form(kind, full | {"finish_reason": None}) | {"usage": None}])
    assert_form(last, form(kind, full) | {"usage": None})
    assert_form(usage, form(kind) | USAGE)


def test_the_form_of_models_and_errors(server):
    card = {"id": NAME, "object": "model", "created": int, "owned_by": "megafuser"}
    assert_form(server.http.get("/v1/models").json(), {"object": "list", "data": [card]})
    assert_form(server.http.get(f"/v1/models/{NAME}").json(), card)
    error = {"message": str, "type": "not_found_error", "param": "model", "code": "model_not_found"}
    assert_form(ask_chat(server, model="gpt").json(), {"error": error})
    assert_form(server.http.get("/no").json()["error"], error | {"param": None, "code": "unknown_route"})


def test_the_document_shows_what_is_sent(server):
    document = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
    chat, completion = (document[path]["POST"] for path in ("/v1/chat/completions", "/v1/completions"))
    answers = [ask_chat(server, logprobs=True, top_logprobs=2, gate=True), ask_completion(server)]
    echo = ask_completion(server, logprobs=2, gate=True, echo=True)  # nulls in lists
    for operation, answer in (
        (chat, answers[0]),
        (chat, ask_chat(server)),
        (chat, ask_chat(server, model="gpt")),
        (completion, answers[1]),
        (completion, echo),
        (document["/v1/models"]["GET"], server.http.get("/v1/models")),
        (document["/v1/models/{model}"]["GET"], server.http.get(f"/v1/models/{NAME}")),
        (document["/health"]["GET"], server.http.get("/health")),
    ):
        operation.validate_response(answer)
    for operation, answer in zip((completion, chat), answers, strict=True):
        assert not operation.is_valid_response(answer)


def test_an_infinity_is_not_sent_as_null():
    with pytest.raises(ValueError, match="not JSON compliant"):
        _event(TopLogprob(token="a", logprob=-math.inf, bytes=[97]).sent())


def test_a_stream_is_the_answer_in_pieces(server):
    body = {"temperature": 1.0, "seed": 3, "max_tokens": 12, "n": 2, "gate": True}
    whole = server.chat(TEXT, **body, logprobs=True, top_logprobs=3)
    response = server.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": TEXT}], stream=True, logprobs=True,
        top_logprobs=3, stream_options={"include_usage": True}, **body,
    )  # fmt: skip
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [choice["delta"]["role"] for choice in chunks[0]["choices"]] == ["assistant"] * 2
    for choice in whole["choices"]:
        own = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert "".join(piece["delta"].get("content", "") for piece in own) == choice["message"]["content"]
        # tokens without a text of their own come with the next ones, behind the opening and before the last two pieces
        assert all(piece["delta"]["content"] for piece in own[1:-2])
        content = [token for piece in own if piece["logprobs"] for token in piece["logprobs"]["content"]]
        for one in content:
            top = [other["logprob"] for other in one["top_logprobs"]]
            assert len(top) == 3 and top == sorted(top, reverse=True) and one["logprob"] <= top[0]
        assert [one["bytes"] for one in content] == [one["bytes"] for one in choice["logprobs"]["content"]]
        weights = [row for piece in own if "gate" in piece for row in piece["gate"]["weights"]]
        assert len(weights) == len(choice["gate"]["weights"]) == len(content)
        assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in weights)
        assert [piece["finish_reason"] for piece in own][-1] == choice["finish_reason"]
    assert whole["choices"][0]["message"] != whole["choices"][1]["message"]


def test_an_event_is_one_line_for_every_client():
    value = {"text": "a\u2028b\u2029c\x85d\r\ne\x1cf é ☃ 😀"}
    lines = _event(value).splitlines()
    assert len(lines) == 2 and not lines[1]
    assert json.loads(lines[0].removeprefix("data: ")) == value


def test_a_streamed_completion_with_echo(server):
    body = {"prompt": ["The fox", "A dog"], "temperature": 0, "max_tokens": 5, "echo": True, "logprobs": 1}
    whole = server.complete(**body)
    chunks = events(server.post("/v1/completions", stream=True, **body))
    for choice in whole["choices"]:
        own = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        for key, values in choice["logprobs"].items():
            assert [value for piece in own for value in piece["logprobs"][key]] == values


def test_a_stop_string_ends_an_answer_before_it(server):
    text = server.complete(prompt=TEXT, temperature=0, max_tokens=12)["choices"][0]["text"]
    stop = text[4:6]
    found = server.complete(prompt=TEXT, temperature=0, max_tokens=12, stop=["no such", stop])["choices"][0]
    assert found["text"] == text[: text.index(stop)]
    assert found["finish_reason"] == "stop"


def test_a_developer_s_message_is_the_system_s(server):
    def content(role):
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": TEXT}]
        return server.post("/v1/chat/completions", messages=messages, max_tokens=8, temperature=0).json()

    alone = server.chat(TEXT, max_tokens=8, temperature=0)
    found = content("developer")
    assert found["choices"] == content("system")["choices"]
    assert found["usage"]["prompt_tokens"] != alone["usage"]["prompt_tokens"]


def test_seeds_repeat_and_choices_differ(server):
    def texts(seed):
        answers = server.complete(prompt=TEXT, max_tokens=12, n=3, seed=seed, best_of=3)
        return [choice["text"] for choice in answers["choices"]]

    assert texts(1) == texts(1) != texts(2)
    one = server.complete(prompt=[[5, 6, 7], [8, 9]], max_tokens=1, temperature=0)["usage"]
    two = server.complete(prompt=[[5, 6, 7], [8, 9]], max_tokens=1, temperature=0, n=2)["usage"]
    assert one == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert two == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}  # a prompt counts once
    assert len(set(texts(1))) == 3


@pytest.mark.parametrize("seed", [None, 1])
def test_equal_prompts_are_drawn_for_by_themselves(server, seed):
    """As whoever asks many times at once, say for pass@k, wants it."""
    choices = server.complete(prompt=[TEXT] * 3, max_tokens=12, temperature=1, seed=seed)["choices"]
    assert len({choice["text"] for choice in choices}) == 3


def test_models_health_and_metrics(server):
    card = server.http.get("/v1/models").json()["data"][0]
    assert card["id"] == NAME
    assert server.http.get(f"/v1/models/{NAME}").json() == card
    assert server.http.get("/health").json() == {"status": "ok"}
    before = server.metric("megafuser_generated_tokens_total")
    made = server.complete(prompt=TEXT, max_tokens=5, temperature=0)["usage"]["completion_tokens"]
    text = server.http.get("/metrics").text
    assert server.metric("megafuser_generated_tokens_total") == before + made
    assert 'megafuser_http_requests_total{route="/v1/completions",status="200"}' in text
    means = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("megafuser_gate_weight_mean{")]
    assert sum(means) == pytest.approx(1.0, abs=1e-5)
    for name in ("time_to_first_token", "time_per_token"):
        assert server.metric(f"megafuser_{name}_seconds_count") > 0
    server.wait_until_free()
