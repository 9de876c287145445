#!/usr/bin/env python3
"""Converts a Hugging Face model into a specialist: a Megatron-Core distributed checkpoint for any TP and PP. No GPU.

The way back is convert_mcore_to_hf.py.
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
Families: Llama 1 to 3.x, Mistral, Qwen 2 and 2.5, Qwen 3 (dense), Phi-4. Weights may be safetensors or .bin files,
sharded or not, in fp32, bf16 or fp16. They are streamed: memory stays below 1 GiB however large the model is.

The output holds weights/ (distributed checkpoint), huggingface/ (configuration and tokenizer, as they were) and
manifest.json (the architecture, the source's revision and content hash, and a hash of every file). It appears only when
it is complete and verified.

examples:
  tools/convert_hf_to_mcore.py --hf models/codellama-13b --out checkpoints/codellama-13b
  tools/convert_hf_to_mcore.py --hf codellama/CodeLlama-13b-Instruct-hf@main --out checkpoints/codellama-13b
  tools/convert_hf_to_mcore.py --hf models/tiny --out checkpoints/tiny --dtype bf16 --verify logits

exit codes: 0 done; 2 bad input, said in one line; 75 the disk filled up, and nothing is left of the output; anything
else is a bug or a failure of the machine
"""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog=_EPILOG)
    parser.add_argument(
        "--hf",
        required=True,
        metavar="DIR|ORG/NAME[@REVISION]",
        help="Hugging Face model: a directory with config.json, weights and tokenizer, which is only read; or its name "
        "on the hub, from where it is downloaded into Hugging Face's cache",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the specialist checkpoint to make")
    add_conversion_arguments(parser, "model")
    return parser.parse_args(arguments)


def _convert(arguments: Sequence[str] | None) -> int:
    options = _parse(arguments)
    if options.out.exists() and not options.overwrite:
        raise UserError(f"--out {options.out} exists; choose another output or pass --overwrite")
    from megafuser.runtime.logs import configure_logs

    configure_logs(rank=0)  # before the libraries that have something to say when they are imported
    from megafuser.conversion.hf_to_mcore import check_before_download, import_specialist
    from megafuser.conversion.hub import resolve_model

    if not Path(options.hf).is_dir():
        check_before_download(options.out, options.overwrite)
    model = resolve_model(options.hf)
    with conversion_progress() as (progress, report):
        manifest = import_specialist(
            model.directory,
            options.out,
            repository=model.repository,
            revision=model.revision,
            dtype=options.dtype,
            verify=options.verify,
            overwrite=options.overwrite,
            progress=progress,
            report=report,
        )
    card = manifest.specialist["card"]
    print(
        f"{options.out}: {card['family']}, {card['num_layers']} layers of width {card['hidden_size']}, {manifest.dtype}"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the conversion; returns the exit code."""
    return guarded(_convert, arguments)


if __name__ == "__main__":
    run_tool(main)
