"""Evaluates one Hugging Face model by lm-evaluation-harness's own `hf` model, on the tasks of this example.

    python -m examples.smollm2.harness --model DIR --tasks A,B --to FILE.json [--limit N]

For the models that are not fused; it shares no model code with `megafuser evaluate`. Generated code runs in
megafuser's sandbox.
"""

import argparse
import json
from pathlib import Path

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from examples.shared.files import write_by_rename
from examples.smollm2.settings import CHAT_TEMPLATE
from megafuser.harness.code import code_allowed
from megafuser.harness.sandbox import Sandbox
from megafuser.runtime.json_values import json_safe

BATCH = 16


def main() -> None:
    """Writes the harness's dictionary, with its samples, by rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--tasks", required=True, help="by comma")
    parser.add_argument("--limit", type=int, help="the first so many questions of each task")
    parser.add_argument("--to", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    sandbox = Sandbox(isolated=True)
    sandbox.check()
    with code_allowed(sandbox):
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu"),
            tasks=args.tasks.split(","),
            task_manager=TaskManager(include_path=str(Path(__file__).parent / "tasks"), include_defaults=False),
            limit=args.limit,
            apply_chat_template=True,
            confirm_run_unsafe_code=True,
        )
    kept = {key: found[key] for key in ("results", "n-samples", "samples")}
    write_by_rename(args.to, json.dumps(json_safe(kept)) + "\n")


if __name__ == "__main__":
    main()
