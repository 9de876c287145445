"""The suite for a GPU, in one command; see docs/gpu.md.

    python -m tests.gpu [--report DIR] [--backend auto|transformer_engine|torch] [--device auto|cuda|cpu]
                        [--part NAME …]

Ends with 0 where nothing failed, 1 where something did, 2 where it cannot run at all.
"""

import argparse
import gc
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from megafuser.errors import UserError
from megafuser.runtime.device import select_backend, select_device
from megafuser.runtime.logs import configure_logs
from tests.gpu.models import Machine
from tests.gpu.report import FAILED, SKIPPED, Check, Finding, environment, run_check, write_report

PARTS = ("mixture", "parity", "packing", "curves", "speed")
MINUTES = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--report", type=Path, default=Path("gpu-report"), help="directory of report.json and .md")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--backend", choices=("auto", "transformer_engine", "torch"), default="auto")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    options = parser.parse_args(arguments)
    configure_logs(rank=0)
    try:
        device = select_device(options.device, local_rank=0)
        backend = select_backend(options.backend, device)
    except UserError as error:
        print(f"tests.gpu: {error}", file=sys.stderr)
        return 2
    machine = Machine(device, backend, tiny=device.type == "cpu")
    start = time.perf_counter()
    checks: list[Check] = []
    with machine.one_rank():
        for part in options.part or PARTS:
            checks += run_part(machine, part)
            write_report(options.report, environment(device, backend), checks)
    minutes = (time.perf_counter() - start) / 60
    limits = {"minutes": MINUTES} if device.type == "cuda" else {}  # a CPU is as fast as others let it be
    checks.append(run_check("time", "all", lambda: Finding({"minutes": minutes}, limits)))
    write_report(options.report, environment(device, backend), checks)
    print(f"{options.report / 'report.md'}: {sum(check.status == FAILED for check in checks)} failed")
    return int(any(check.status == FAILED for check in checks))


def run_part(machine: Machine, part: str) -> list[Check]:
    """All checks of a part, each shown when it is done; one that cannot even be set up fails as a whole."""
    found: list[Check] = []

    def add(check: Check) -> None:
        found.append(check)
        note = f": {check.note.rstrip().splitlines()[-1]}" if check.note else ""
        print(f"{part}: {check.name}: {check.status} in {check.seconds:.1f} s{note}", flush=True)

    def make_all() -> Finding:
        for name, measure in importlib.import_module(f"tests.gpu.{part}").checks(machine):
            add(run_check(part, name, measure))
            if found[-1].status != SKIPPED and machine.device.type == "cuda":
                gc.collect()  # engines hold themselves in circles
                torch.cuda.empty_cache()
        return Finding({})

    whole = run_check(part, "setup", make_all)
    if whole.status == FAILED:
        add(whole)
    return found


if __name__ == "__main__":
    sys.exit(main())
