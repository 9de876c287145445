"""What Prometheus is told, from a registry of our own.

The metrics of training are `training.metrics`.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and histograms, and gauges that are read when they are asked for."""

    def __init__(self, specialists: Sequence[str]) -> None:
        """Begins at zero.

        Args:
            specialists: names, in order.
        """
        self.registry = CollectorRegistry()
        self._specialists = tuple(specialists)
        self._sums = [0.0] * len(self._specialists)
        self._count = 0
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._requests = Counter(
            "megafuser_http_requests", "HTTP requests.", ("route", "status"), registry=self.registry
        )
        self._prompt = Counter("megafuser_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self._generated = Counter("megafuser_generated_tokens", "Tokens generated.", registry=self.registry)
        self._first = Histogram(
            "megafuser_time_to_first_token_seconds",
            "From a sequence's entry into the queue to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._next = Histogram(
            "megafuser_time_per_token_seconds",
            "Between two tokens of a response.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._gate = Counter(
            "megafuser_gate_weight",
            "Sum of the gate's weights over generated tokens; divide by their number.",
            ("specialist",),
            registry=self.registry,
        )
        self.registry.register(self)

    def add_gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when metrics are asked for."""
        self._gauges.append((name, text, read))

    def request(self, route: str, status: int) -> None:
        """Counts an HTTP request; the route is a template of the application's, so that there are few."""
        self._requests.labels(route, str(status)).inc()

    def prompt(self, tokens: int) -> None:
        """Counts a prompt that was taken."""
        self._prompt.inc(tokens)

    def token(self, seconds: float, is_first: bool, gate: Sequence[float] | None) -> None:
        """Counts a token, if there is one.

        Args:
            seconds: since the one before, or since the request came.
            is_first: of its response.
            gate: K weights; None where a prompt was scored and no token made.
        """
        if gate is None:
            return
        (self._first if is_first else self._next).observe(seconds)
        self._generated.inc()
        self._count += 1
        for index, (name, weight) in enumerate(zip(self._specialists, gate, strict=True)):
            self._gate.labels(name).inc(weight)
            self._sums[index] += weight

    def collect(self) -> Iterable[Metric]:
        """The gauges; called by the registry."""
        for name, text, read in self._gauges:
            yield GaugeMetricFamily(name, text, value=read())
        mean = GaugeMetricFamily(
            "megafuser_gate_weight_mean", "Mean of the gate's weights over all generated tokens.", labels=["specialist"]
        )
        for name, total in zip(self._specialists, self._sums, strict=True):
            mean.add_metric([name], total / self._count if self._count else 0.0)
        yield mean

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
