"""`megafuser generate`: answers to prompts.

Arguments and help only: the work is `inference.generate`.
"""

import argparse
from pathlib import Path

from megafuser.cli.model_arguments import add_model_arguments, opening
from megafuser.cli.shared_arguments import (
    BAD_INPUT,
    DONE,
    MODEL_OVERRIDES,
    STOPPED_EARLY,
    Parser,
    add_command,
    number,
    positive,
)
from megafuser.errors import UserError
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.signals import leaving_at_a_signal
from megafuser.runtime.world import detect_world

_DESCRIPTION = """\
Answers a prompt, or a file of prompts, with the fused model: each specialist reads it through its own template, and
every token comes from their mixed logits. Keys and values are cached, per specialist.

Standard output carries the completion and a newline, nothing else. A line of --file is {"prompt": ...} or
{"messages": [{"role": "user", "content": ...}, ...]}; --out gets the same lines with `completion` and `finish_reason`,
which is `stop` at the end of the answer or at a --stop string, and `length` where the tokens ran out. Completions are
kept in OUT.partial as they come: a command that was cut off goes on where it was when it is given again.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser generate`."""
    generate = add_command(
        subparsers,
        "generate",
        _run,
        summary="answer prompts with a fused model",
        description=_DESCRIPTION,
        example='megafuser generate --checkpoint runs/mine --prompt "What is 7 times 8?" --show-gate',
        usage="megafuser generate --checkpoint DIR (--prompt TEXT | --file FILE --out FILE) [options] [key=value ...]",
        has_config=False,
        overrides=MODEL_OVERRIDES,
        exits=(DONE, BAD_INPUT, STOPPED_EARLY),
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
        "--temperature", metavar="T", type=number, default=0.0, help="0 is greedy (default); 1 the model's own"
    )
    generate.add_argument(
        "--top-p",
        metavar="P",
        type=number,
        default=1.0,
        help="draw among the most probable up to P (default: 1)",
    )
    generate.add_argument(
        "--top-k", metavar="K", type=int, default=0, help="draw among the K most probable tokens (default: 0, all)"
    )
    generate.add_argument(
        "--repetition-penalty", metavar="R", type=number, default=1.0, help="above 1: fewer repetitions (default: 1)"
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


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.prompt is None) == (arguments.file is None):
        raise UserError("give either --prompt TEXT or --file FILE with --out FILE")
    if (arguments.file is None) != (arguments.out is None):
        raise UserError("--file and --out go together")
    if arguments.system is not None and (arguments.file is not None or arguments.raw):
        raise UserError("--system goes with --prompt, and not with --raw")
    if "" in arguments.stop:
        raise UserError("--stop is empty; give the text that ends a completion")
    from megafuser.config.run_directory import resolve_checkpoint

    checkpoint = resolve_checkpoint(arguments.checkpoint)
    world = detect_world()
    configure_logs(world.rank)
    with leaving_at_a_signal(world):  # until the answers to a file take them over
        from megafuser.inference.generate import Options, run_generate
        from megafuser.inference.sampling import SamplingParameters

        options = Options(
            prompt=arguments.prompt,
            file=None if arguments.file is None else Path(arguments.file),
            out=None if arguments.out is None else Path(arguments.out),
            overwrite=arguments.overwrite,
            raw=arguments.raw,
            system=arguments.system,
            max_new_tokens=arguments.max_new_tokens,
            sampling=SamplingParameters(
                temperature=arguments.temperature,
                top_p=arguments.top_p,
                top_k=arguments.top_k,
                repetition_penalty=arguments.repetition_penalty,
                seed=arguments.seed,
            ),
            stop=tuple(arguments.stop),
            show_gate=arguments.show_gate,
            max_running=arguments.max_running,
        )
        return run_generate(opening(arguments, checkpoint), options)
