"""What Prometheus reads after a few tokens."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from megafuser.serving.metrics import Metrics

TEXT = "What is the sum of three and four?"


def values(text: bytes) -> dict[str, float]:
    """Samples by name and the values of their labels."""
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_tokens_are_counted_once_each_where_they_belong():
    metrics = Metrics(["text", "code"])
    metrics.prompt(7)
    metrics.token(0.5, True, (0.25, 0.75))
    metrics.token(0.125, False, (0.75, 0.25))
    metrics.token(0.25, False, (0.5, 0.5))
    metrics.token(2.0, True, None)  # a prompt that was scored only
    metrics.add_gauge("megafuser_kv_positions", "Positions.", lambda: 12)
    metrics.request("/health", 200)
    found = values(metrics.text())
    expected = {
        "megafuser_prompt_tokens_total": 7,
        "megafuser_generated_tokens_total": 3,
        "megafuser_time_to_first_token_seconds_count": 1,
        "megafuser_time_to_first_token_seconds_sum": 0.5,
        "megafuser_time_per_token_seconds_count": 2,
        "megafuser_time_per_token_seconds_sum": 0.375,
        "megafuser_gate_weight_total text": 1.5,
        "megafuser_gate_weight_mean text": 0.5,
        "megafuser_gate_weight_mean code": 0.5,
        "megafuser_kv_positions": 12,
        "megafuser_http_requests_total /health 200": 1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_gate_s_sums_are_the_answers_(server):
    before = values(server.http.get("/metrics").content)
    answer = server.complete(prompt=TEXT, max_tokens=8, temperature=1, seed=2, gate=True)
    after = values(server.http.get("/metrics").content)
    gate = answer["choices"][0]["gate"]
    assert len({tuple(row) for row in gate["weights"]}) > 1
    for index, name in enumerate(gate["specialists"]):
        key = f"megafuser_gate_weight_total {name}"
        total = sum(row[index] for row in gate["weights"])
        assert after[key] - before.get(key, 0.0) == pytest.approx(total, abs=1e-5)
    counted = "megafuser_time_to_first_token_seconds_count"
    assert after[counted] - before[counted] == 1
    prompts = "megafuser_prompt_tokens_total"
    assert after[prompts] - before[prompts] == answer["usage"]["prompt_tokens"]
