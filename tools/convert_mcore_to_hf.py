#!/usr/bin/env python3
"""Converts a checkpoint back into a Hugging Face directory: a specialist, or a fused model that transformers loads.

The way in is convert_hf_to_mcore.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megafuser.cli.shared_arguments import Parser
from megafuser.cli.tool import add_conversion_arguments, conversion_progress, guarded, run_tool
from megafuser.errors import UserError

_EPILOG = """\
--checkpoint takes a converted specialist; or, of a run, a step's directory, a stage's (its latest step) or the run's
(the latest step of the last stage). Of a run, --specialist NAME exports that specialist as it was trained; without it
the whole fused model is exported, and

  AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)

loads it, gate and all, without megafuser. Weights are streamed, in files of at most 5 GB; what came along with the
original models (tokenizers, generation settings) comes back. The output appears only when it is complete and verified.

examples:
  tools/convert_mcore_to_hf.py --checkpoint runs/ultrafuser-13b --out exports/fused
  tools/convert_mcore_to_hf.py --checkpoint runs/ultrafuser-13b/joint --specialist code --out exports/code
  tools/convert_mcore_to_hf.py --checkpoint checkpoints/codellama-13b --out exports/codellama-13b --verify logits

exit codes: 0 done; 2 bad input, said in one line; 75 the disk filled up, and nothing is left of the output; anything
else is a bug or a failure of the machine
"""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog=_EPILOG)
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="DIR", help="the checkpoint to export; it is only read"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the Hugging Face directory to make")
    parser.add_argument("--specialist", metavar="NAME", help="export this specialist of a run's checkpoint alone")
    add_conversion_arguments(parser, "checkpoint")
    return parser.parse_args(arguments)


def _convert(arguments: Sequence[str] | None) -> int:
    options = _parse(arguments)
    if options.out.exists() and not options.overwrite:
        raise UserError(f"--out {options.out} exists; choose another output or pass --overwrite")
    from megafuser.runtime.logs import configure_logs

    configure_logs(rank=0)  # before the libraries that have something to say when they are imported
    from megafuser.conversion.export import export_checkpoint

    with conversion_progress() as (progress, report):
        export_checkpoint(
            options.checkpoint,
            options.out,
            specialist=options.specialist,
            dtype=options.dtype,
            verify=options.verify,
            overwrite=options.overwrite,
            progress=progress,
            report=report,
        )
    print(f"{options.out}: ready for transformers")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the conversion; returns the exit code."""
    return guarded(_convert, arguments)


if __name__ == "__main__":
    run_tool(main)
