"""Clients that know nothing of megafuser: OpenAI's own, curl, lm-eval, and schemathesis with the server's document."""

import json
import shutil
import subprocess
from pathlib import Path

import openai
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks as openapi_checks

from megafuser.inference.open_model import FusedLanguageModel
from tests.unit.inference.case import LIMIT
from tests.unit.serving.case import NAME, WAIT, open_model, running_server

TEXT = "What is the sum of three and four?"
KEY = "sesame-open"


@pytest.fixture(scope="module")
def secured(model: FusedLanguageModel):
    """A server that asks for a key."""
    with running_server(model, api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(secured):
    with openai.OpenAI(base_url=f"{secured.url}/v1", api_key=KEY, max_retries=0, timeout=WAIT) as own:
        yield own


def test_openai_models_and_errors(secured, client):
    assert [model.id for model in client.models.list()] == [NAME]
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="the context has") as caught:
        client.completions.create(model=NAME, prompt="a", max_tokens=10_000)
    assert caught.value.param == "max_tokens" and caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{secured.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_openai_completions(client):
    whole = client.completions.create(model=NAME, prompt=TEXT, max_tokens=8, temperature=0, logprobs=3, echo=True)
    choice = whole.choices[0]
    assert choice.text.startswith(TEXT)
    assert len(choice.logprobs.tokens) == whole.usage.total_tokens
    assert all(len(top) >= 3 for top in choice.logprobs.top_logprobs[1:])
    pieces = list(
        client.completions.create(
            model=NAME, prompt=TEXT, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert TEXT + "".join(piece.choices[0].text for piece in pieces if piece.choices) == choice.text
    assert pieces[-1].usage == whole.usage
    several = client.completions.create(
        model=NAME, prompt=[[5, 6, 7], [8, 9]], max_tokens=2, n=2, extra_body={"top_k": 5, "gate": True}
    )
    assert [one.index for one in several.choices] == [0, 1, 2, 3]
    assert len(several.choices[0].gate["weights"][0]) == 3


def test_openai_chat(client):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": " two?"}]},
    ]
    common = {"model": NAME, "messages": messages, "max_completion_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**common, logprobs=True, top_logprobs=2, stop=["no such text"])
    choice = whole.choices[0]
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    for token in choice.logprobs.content:
        assert token.logprob == max(one.logprob for one in token.top_logprobs)
    joined = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One two?"}]
    assert client.chat.completions.create(**common | {"messages": joined}).choices[0].message == choice.message
    chunks = list(client.chat.completions.create(**common, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(secured):
    command = ["curl", "-sS", "--noproxy", "*", f"{secured.url}/v1/completions", "-H", f"Authorization: Bearer {KEY}"]
    body = json.dumps({"prompt": TEXT, "max_tokens": 4, "temperature": 0})
    found = subprocess.run([*command, "-d", body], capture_output=True, text=True, timeout=WAIT, check=True)
    text = json.loads(found.stdout)["choices"][0]["text"]
    streamed = json.dumps(json.loads(body) | {"stream": True})
    found = subprocess.run([*command, "-N", "-d", streamed], capture_output=True, text=True, timeout=WAIT, check=True)
    lines = [line.removeprefix("data: ") for line in found.stdout.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == text


def write_tasks(directory: Path) -> Path:
    """Local tasks: multiple choice, and generation."""
    questions = [
        {"question": f"{number} and {number}", "choices": ["ten", "seven", "nine"], "label": number % 3}
        for number in range(4)
    ]
    data = directory / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    choice = common | {
        "task": "tiny_choice", "output_type": "multiple_choice", "doc_to_text": "Sum: {{question}} is",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    generation = common | {
        "task": "tiny_generate", "output_type": "generate_until", "doc_to_text": "Sum: {{question}} is",
        "doc_to_target": "{{choices[label]}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
    }  # fmt: skip
    tasks = directory / "tasks"
    tasks.mkdir()
    for task in (choice, generation):
        (tasks / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return tasks


def test_lm_eval(root, secured, tmp_path, monkeypatch):
    pytest.importorskip("tenacity", reason="lm-eval's clients of HTTP servers need pip install lm-eval[api]")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(write_tasks(tmp_path)), include_defaults=False)
    common = {"model": NAME, "max_retries": 1, "max_length": LIMIT}
    completions = common | {
        "base_url": f"{secured.url}/v1/completions", "tokenizer": str(root / "hf" / "text"),
        "tokenizer_backend": "huggingface", "batch_size": 2,
    }  # fmt: skip
    found = lm_eval.simple_evaluate(
        "local-completions", model_args=completions, tasks=["tiny_choice", "tiny_generate"], task_manager=manager,
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    for sample in found["samples"]["tiny_choice"]:
        for (context, continuation), answers in zip(sample["arguments"], sample["resps"], strict=True):
            logprob, is_greedy = answers[0]
            # one request of our own for the same: the continuation is what follows the context's tokens
            before = secured_scores(secured, context)
            whole = secured_scores(secured, context + continuation)
            assert logprob == pytest.approx(sum(whole[len(before) :]), abs=1e-4)
            assert isinstance(is_greedy, bool)
    assert len(found["samples"]["tiny_generate"]) == 4
    # the harness's own models put the tokenizer's BOS in front, its clients of servers only where they are told to
    tasks = ["tiny_choice", "tiny_generate"]
    found = lm_eval.simple_evaluate(
        "local-completions", model_args=completions | {"add_bos_token": True}, tasks=tasks, task_manager=manager,
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    assert_same(found, evaluate_inside(root, manager, tasks, raw=True))

    chat = common | {"base_url": f"{secured.url}/v1/chat/completions"}
    found = lm_eval.simple_evaluate(
        "local-chat-completions", model_args=chat, tasks=["tiny_generate"], task_manager=manager,
        apply_chat_template=True, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {KEY}"}
    for sample in found["samples"]["tiny_generate"]:
        text = f"Sum: {sample['doc']['question']} is"
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0, "stop": ["."]}
        own = secured.http.post("/v1/chat/completions", json=body, headers=headers).json()
        assert sample["resps"][0][0] == own["choices"][0]["message"]["content"]
    assert_same(found, evaluate_inside(root, manager, ["tiny_generate"], raw=False))


def evaluate_inside(root, manager, tasks: list[str], *, raw: bool) -> dict:
    """The same tasks without a server, as `megafuser evaluate` runs them."""
    import lm_eval

    from megafuser.harness.answers import Answers
    from megafuser.harness.language_model import FusedLM

    lm = FusedLM(open_model(root), Answers(None, {}), raw=raw, max_running=4)
    return lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True)


def assert_same(found: dict, expected: dict) -> None:
    """Metrics and answers of two evaluations of the same tasks."""
    for task, metrics in expected["results"].items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        assert numbers
        for name, value in numbers.items():
            assert found["results"][task][name] == pytest.approx(value, abs=1e-6), (task, name)
        for ours, theirs in zip(found["samples"][task], expected["samples"][task], strict=True):
            for one, other in zip(ours["resps"], theirs["resps"], strict=True):
                if isinstance(one[0], str):
                    assert one == other
                else:
                    assert one[0][0] == pytest.approx(other[0][0], abs=1e-4)
                    assert one[0][1] == other[0][1]


def secured_scores(server, text: str) -> list[float]:
    """Logprobs of a text's tokens without a token in front, the first one's left out."""
    ids = server.serving.service.model.tokenizer(text, add_special_tokens=False)["input_ids"]
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = server.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}).json()
    return answer["choices"][0]["logprobs"]["token_logprobs"][1:]


CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


# chance seldom asks for a stream
STREAMED = {
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}


def test_schemathesis(secured):
    schema = schemathesis.openapi.from_url(f"{secured.url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} == {
        "/v1/models", "/v1/models/{model}", "/v1/completions", "/v1/chat/completions", "/health", "/metrics",
    }  # fmt: skip
    seen = set()
    positive, negative = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    for operation in operations:
        for mode in (positive, negative) if operation.body else (positive,):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
            )
            def conforms(case: schemathesis.Case) -> None:
                answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS, timeout=WAIT)
                seen.add((case.operation.path, answer.status_code))

            conforms()
        if operation.path in STREAMED:
            case = operation.Case(body=STREAMED[operation.path] | {"stream": True}, media_type="application/json")
            answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS, timeout=WAIT)
            assert answer.headers["content-type"][0].startswith("text/event-stream")
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert (path, 400) in seen
