"""What the API answers, compared with the engine's own tests' reference and with OpenAI's documented forms."""

import json

import pytest

from megafuser.inference.prompts import Message
from megafuser.serving.stream import _event
from tests.unit.inference.case import Dense, make_prompts
from tests.unit.serving.case import NAME

TEXT = "What is the sum of three and four?"


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
