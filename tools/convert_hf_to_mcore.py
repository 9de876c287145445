#!/usr/bin/env python3
"""Converts a Hugging Face model into a specialist: a Megatron-Core distributed checkpoint for any TP and PP. No GPU."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megafuser.cli.main import run_guarded
from megafuser.errors import UserError

_EPILOG = """\
The output holds weights/ (distributed checkpoint), huggingface/ (configuration and tokenizer, as they were) and
manifest.json (the architecture, and a hash of every file). It appears only when it is complete and verified.

examples:
  tools/convert_hf_to_mcore.py --hf models/codellama-13b --out checkpoints/codellama-13b
  tools/convert_hf_to_mcore.py --hf models/tiny --out checkpoints/tiny --dtype bf16 --verify logits

exit codes: 0 done; 2 bad input, said in one line; anything else is a bug or a failure of the machine
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake."""
        raise UserError(f"{message}; see {Path(sys.argv[0]).name} --help")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hf", required=True, metavar="DIR", help="Hugging Face model: config.json, safetensors, tokenizer; only read"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the specialist checkpoint to make")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16", "keep"),
        default="keep",
        help="dtype of the stored weights; keep (the default) is bitwise what the model has",
    )
    parser.add_argument(
        "--verify",
        choices=("none", "weights", "logits"),
        default="weights",
        help="weights (the default): read back what was written and compare it with the source bit by bit; logits: "
        "besides, run both models in fp32 and compare their logits to 1e-4 (needs memory for both)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is already at --out")
    return parser.parse_args(arguments)


def _convert(arguments: Sequence[str] | None) -> int:
    options = _parse(arguments)
    source = Path(options.hf)
    if not source.exists():
        raise UserError(
            f"--hf {options.hf}: no such directory; models are not fetched from the Hugging Face hub, so download it "
            f"first (hf download {options.hf} --local-dir DIR) and give its directory"
        )
    if options.out.exists() and not options.overwrite:
        raise UserError(f"--out {options.out} exists; choose another output or pass --overwrite")
    from megafuser.runtime.logs import configure_logs

    configure_logs(rank=0)  # before the libraries that have something to say when they are imported
    from tqdm import tqdm

    from megafuser.checkpoint.importer import import_specialist

    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        shown = ""

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal shown
            if phase != shown:
                shown = phase
                bar.reset(total)
                bar.set_description(phase)
            bar.update(done - bar.n)

        manifest = import_specialist(
            source,
            options.out,
            dtype=options.dtype,
            verify=options.verify,
            overwrite=options.overwrite,
            progress=progress,
            report=bar.write,
        )
    card = manifest.content["card"]
    print(
        f"{options.out}: {card['family']}, {card['num_layers']} layers of width {card['hidden_size']}, {manifest.dtype}"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the conversion; returns the exit code."""
    return run_guarded(lambda: _convert(arguments))


if __name__ == "__main__":
    # a terminated conversion takes its unfinished output with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
