"""The arguments of the commands that use a trained model."""

import argparse
import math

from megafuser.cli import commands
from megafuser.cli.arguments import Parser, above_zero, add_command, not_negative, positive

_GENERATE = """\
Answers a prompt, or a file of prompts, with the fused model: each specialist reads it through its own template, and
every token comes from their mixed logits. Keys and values are cached, per specialist.

Standard output carries the completion and a newline, nothing else. A line of --file is {"prompt": ...} or
{"messages": [{"role": "user", "content": ...}, ...]}; --out gets the same lines with `completion` and `finish_reason`,
which is `stop` at the end of the answer or at a --stop string, and `length` where the tokens ran out. Completions are
kept in OUT.partial as they come: a command that was cut off goes on where it was when it is given again.
"""

_SERVE = """\
Serves the fused model by OpenAI's API: /v1/models, /v1/completions (the same ids to every specialist; logprobs, echo),
/v1/chat/completions (each specialist reads the messages through its own template), both with streams; /health and
/metrics for who watches over it, and a page at / to try prompts on, which colours the answer by the gate.

Requests share the steps of one model and come and go between them; what finds no room waits, and what finds the queue
full is told when to come again. SIGTERM or Ctrl-C lets running requests finish, a second one does not.
"""

_EVALUATE = """\
Runs tasks of EleutherAI's lm-evaluation-harness on a fused model: its own by name, or local ones under --include-path.
Each request goes through each specialist's template, or with --raw unchanged to all.

Writes OUT/results.json (the harness's), OUT/table.md and OUT/samples/. Answers are kept as they come: a command that
was cut off goes on where it was when it is given again. Code that the model writes is run only with
--allow-code-execution, and then in a sandbox. docs/evaluation.md says more.
"""

_CHECKPOINT = "a step's directory, a stage's (its latest) or a run's (the latest of its last stage)"


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """What every command has that opens a checkpoint to use it."""
    command.add_argument("--checkpoint", metavar="DIR", required=True, help=_CHECKPOINT)
    command.add_argument("--tensor", metavar="N", type=positive, default=1, help="tensor-parallel size (default: 1)")
    command.add_argument("--pipeline", metavar="N", type=positive, default=1, help="pipeline stages (default: 1)")
    command.add_argument(
        "--cache-gib",
        metavar="GIB",
        type=above_zero,
        help="memory for keys and values on each rank (default: 1 on a CPU, on a GPU 80%% of what the weights leave)",
    )
    command.add_argument(
        "--max-running", metavar="N", type=positive, default=16, help="most sequences in a step (default: 16)"
    )
    command.add_argument(
        "--force",
        metavar="NAME",
        help="give all weight to this specialist, or the same to each with `uniform`, whatever the gate says",
    )


def add_generate(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser generate`."""
    generate = add_command(
        subparsers,
        "generate",
        commands.generate,
        summary="answer prompts with a fused model",
        description=_GENERATE,
        example='megafuser generate --checkpoint runs/ultrafuser-13b --prompt "What is 7 times 8?" --show-gate',
        usage="megafuser generate --checkpoint DIR (--prompt TEXT | --file FILE --out FILE) [options] [key=value ...]",
        has_config=False,
    )
    add_model_arguments(generate)
    generate.add_argument("--prompt", metavar="TEXT", help="one prompt")
    generate.add_argument("--system", metavar="TEXT", help="a system prompt for --prompt")
    generate.add_argument("--file", metavar="FILE", help="JSONL with a prompt or messages a line")
    generate.add_argument("--out", metavar="FILE", help="where the completions of --file go; refused where it exists")
    generate.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    generate.add_argument("--raw", action="store_true", help="the same text to all specialists, without templates")
    generate.add_argument(
        "--max-new-tokens", metavar="N", type=positive, help="most tokens of a completion (default: 256)"
    )
    generate.add_argument(
        "--temperature", metavar="T", type=_number, default=0.0, help="0 is greedy (default); 1 the model's own"
    )
    generate.add_argument(
        "--top-p",
        metavar="P",
        type=_number,
        default=1.0,
        help="draw among the most probable up to P (default: 1)",
    )
    generate.add_argument(
        "--top-k", metavar="K", type=int, default=0, help="draw among the K most probable tokens (default: 0, all)"
    )
    generate.add_argument(
        "--repetition-penalty", metavar="R", type=_number, default=1.0, help="above 1: fewer repetitions (default: 1)"
    )
    generate.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this text; may be given again"
    )
    generate.add_argument("--seed", metavar="S", type=int, default=0, help="of the draws (default: 0)")
    generate.add_argument(
        "--show-gate",
        action="store_true",
        help="colour the tokens by the specialists that carried them, on standard error; with --file: `gate` in --out",
    )


def add_serve(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser serve`."""
    serve = add_command(
        subparsers,
        "serve",
        commands.serve,
        summary="serve a fused model by OpenAI's API",
        description=_SERVE,
        example="megafuser serve --checkpoint runs/ultrafuser-13b --port 8000",
        usage="megafuser serve --checkpoint DIR [options] [key=value ...]",
        has_config=False,
    )
    add_model_arguments(serve)
    serve.add_argument(
        "--host", metavar="H", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    serve.add_argument(
        "--port", metavar="P", type=_port, default=8000, help="port (default: 8000); 0 takes a free one and says which"
    )
    serve.add_argument(
        "--api-key",
        metavar="K",
        help="what requests to /v1 must bring as `Authorization: Bearer K` (default: MEGAFUSER_API_KEY, which, other "
        "than an argument, no other user of the machine sees; with neither no key is needed)",
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


def _port(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, not {text!r}")
    return number


def add_evaluate(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser evaluate`."""
    evaluate = add_command(
        subparsers,
        "evaluate",
        commands.evaluate,
        summary="run benchmarks of the lm-evaluation-harness",
        description=_EVALUATE,
        example="megafuser evaluate --checkpoint runs/ultrafuser-13b --tasks gsm8k,truthfulqa_mc2 --out evaluation",
        usage="megafuser evaluate --checkpoint DIR --tasks TASK[,TASK ...] --out DIR [options] [key=value ...]",
        has_config=False,
    )
    add_model_arguments(evaluate)
    evaluate.add_argument("--tasks", metavar="TASKS", required=True, help="names of tasks, groups or tags, with commas")
    evaluate.add_argument(
        "--include-path",
        metavar="DIR",
        action="append",
        default=[],
        help="a directory with tasks of your own, e.g. examples/tasks; may be given again",
    )
    evaluate.add_argument("--out", metavar="DIR", required=True, help="where results go; refused where it exists")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation in --out")
    evaluate.add_argument(
        "--limit", metavar="N", type=positive, help="the first N questions of each task (default: all)"
    )
    evaluate.add_argument("--num-fewshot", metavar="N", type=not_negative, help="examples before each question")
    evaluate.add_argument("--raw", action="store_true", help="the same ids to all specialists, without templates")
    evaluate.add_argument(
        "--alone", action="store_true", help="also each specialist alone, and all with the same weight"
    )
    evaluate.add_argument(
        "--allow-code-execution", action="store_true", help="run code that the model writes, in a sandbox"
    )
    evaluate.add_argument(
        "--no-network-isolation",
        action="store_true",
        help="run that code where Linux namespaces are not allowed: it can then use the network and your files",
    )


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return number
