"""What a server is told at its start.

The options are defined in `cli.commands.serve` and `cli.model_arguments`; those of a single request in
`serving.request_schema`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Options of `megafuser serve`.

    Attributes:
        host: address to listen at.
        port: port; 0 takes a free one.
        api_key: what `/v1` asks for; None: nothing.
        model_name: what the model is called; None: RUN/STAGE/STEP.
        max_running: most sequences in a step.
        max_queue: most sequences that wait.
        max_body_mib: most mebibytes of a request's body.
        max_tokens: most tokens that one response may have; None: what the context has room for.
        request_timeout: seconds after which a request is given up.
        grace_seconds: how long running requests may go on after a signal.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    model_name: str | None = None
    max_running: int = 16
    max_queue: int = 256
    max_body_mib: float = 1.0
    max_tokens: int | None = None
    request_timeout: float = 600.0
    grace_seconds: float = 20.0
