"""`megafuser serve`: an HTTP server by OpenAI's API.

Arguments and help only: the work is `serving.server`.
"""

import argparse
import os

from megafuser.cli.model_arguments import add_model_arguments, opening
from megafuser.cli.shared_arguments import MODEL_OVERRIDES, Parser, above_zero, add_command, port, positive
from megafuser.errors import UserError
from megafuser.extras import require
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.world import detect_world

_DESCRIPTION = """\
Serves the fused model by OpenAI's API: /v1/models, /v1/completions (the same ids to every specialist; logprobs, echo),
/v1/chat/completions (each specialist reads the messages through its own template), both with streams; /health and
/metrics for who watches over it, and a page at / to try prompts on, which colours the answer by the gate.

Requests share the steps of one model and come and go between them; what finds no room waits, and a full queue answers
429 with Retry-After. SIGTERM or Ctrl-C lets running requests finish, a second one does not.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser serve`."""
    serve = add_command(
        subparsers,
        "serve",
        _run,
        summary="serve a fused model by OpenAI's API",
        description=_DESCRIPTION,
        example="megafuser serve --checkpoint runs/mine --port 8000",
        usage="megafuser serve --checkpoint DIR [options] [key=value ...]",
        has_config=False,
        overrides=MODEL_OVERRIDES,
    )
    add_model_arguments(serve)
    serve.add_argument(
        "--host", metavar="H", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    serve.add_argument(
        "--port", metavar="P", type=port, default=8000, help="port (default: 8000); 0 takes a free one and says which"
    )
    serve.add_argument(
        "--api-key",
        metavar="K",
        help="what requests to /v1 must bring as `Authorization: Bearer K` (default: MEGAFUSER_API_KEY, which is safer "
        "than an argument, which other users of the machine can see; without either, no key is required)",
    )
    serve.add_argument("--model-name", metavar="NAME", help="what the model is called (default: RUN/STAGE/STEP)")
    serve.add_argument(
        "--max-queue", metavar="N", type=positive, default=256, help="most sequences that wait (default: 256), then 429"
    )
    serve.add_argument(
        "--max-body-mib", metavar="MIB", type=above_zero, default=1.0, help="largest body of a request (default: 1)"
    )
    serve.add_argument(
        "--max-tokens", metavar="N", type=positive, help="most tokens of one response (default: the context's)"
    )
    serve.add_argument(
        "--request-timeout",
        metavar="SECONDS",
        type=above_zero,
        default=600.0,
        help="give a request up after so long (default: 600)",
    )
    serve.add_argument(
        "--grace-seconds",
        metavar="SECONDS",
        type=above_zero,
        default=20.0,
        help="how long running requests may go on after a signal (default: 20)",
    )


def _run(arguments: argparse.Namespace) -> int:
    api_key = os.environ.get("MEGAFUSER_API_KEY") if arguments.api_key is None else arguments.api_key
    if api_key is not None and (not api_key or not all("!" <= letter <= "~" for letter in api_key)):
        raise UserError(
            "--api-key (or MEGAFUSER_API_KEY) must be one or more printable ASCII letters without blanks; give neither "
            "to serve without a key"
        )
    from megafuser.config.run_directory import resolve_checkpoint

    checkpoint = resolve_checkpoint(arguments.checkpoint)
    require("serve", "megafuser serve")
    configure_logs(detect_world().rank)
    from megafuser.serving.server import run_serve
    from megafuser.serving.settings import Settings

    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        api_key=api_key,
        model_name=arguments.model_name,
        max_running=arguments.max_running,
        max_queue=arguments.max_queue,
        max_body_mib=arguments.max_body_mib,
        max_tokens=arguments.max_tokens,
        request_timeout=arguments.request_timeout,
        grace_seconds=arguments.grace_seconds,
    )
    return run_serve(opening(arguments, checkpoint), settings)
