"""Small stand-ins of the data sets that the recipes name, with their publishers' files and fields, in DIR/ORG/NAME."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

# Sixteen words of a benchmark's problem, and the same with other case, punctuation and white space.
LEAK = "A train of nine red cars leaves the old station at noon and passes seven bridges slowly"
LEAK_CHANGED = "a TRAIN of nine; red cars\n leaves the old   station, at noon -- and passes seven bridges: slowly!"
# Twelve of those words, as a near miss.
NEAR_MISS = "A train of nine red cars leaves the old station at noon, but nobody waves"


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def array(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def chat(number: int, text: str | None = None) -> dict[str, Any]:
    prompt = text or f"Tell me about town {number}"
    messages = [
        {"content": prompt, "role": "user"},
        {"content": f"Town {number} lies by a river.", "role": "assistant"},
        {"content": "How large is it?", "role": "user"},
        {"content": f"It has {number} houses.", "role": "assistant"},
    ]
    return {"prompt": prompt, "prompt_id": f"{number:064x}", "messages": messages}


def make_sets(root: Path) -> None:
    """All data sets of the two examples' recipes; a leak in math, duplicates in code, CAMEL's part in math."""
    chats = [chat(number) for number in range(40)]
    parquet(root / "HuggingFaceH4/ultrachat_200k/data/train_sft-00000-of-00001.parquet", chats)
    parquet(root / "HuggingFaceH4/ultrachat_200k/data/test_sft-00000-of-00001.parquet", chats[:3])
    (root / "HuggingFaceH4/ultrachat_200k/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train_sft, path: data/train_sft-*}\n  - {split: test_sft, path: data/test_sft-*}\n---\n"
    )
    code = [{"instruction": f"Write function {number}.", "response": f"def f{number}(): ..."} for number in range(30)]
    lines(root / "ise-uiuc/Magicoder-Evol-Instruct-110K/data-evol_instruct-decontaminated.jsonl", code)
    # Five of Magicoder's, one of them with other white space, and ten of its own.
    again = [{"instruction": one["instruction"], "output": one["response"]} for one in code[:5]]
    again[0]["instruction"] = again[0]["instruction"].replace(" ", "  ") + "\n"
    own = [{"instruction": f"Write class {number}.", "output": f"class C{number}: ..."} for number in range(10)]
    lines(root / "theblackcat102/evol-codealpaca-v1/train.jsonl", again + own)
    math = [
        {"source": "data/CoT/gsm_train.json", "output": f"It is {number}.", "instruction": f"What is {number} plus 0?"}
        for number in range(20)
    ]
    math += [
        {"source": "data/CoT/math50k_camel.json", "output": "Camel.", "instruction": "What is a camel?"},
        {"source": "data/CoT/gsm_train.json", "output": "Seven.", "instruction": f"Listen. {LEAK_CHANGED} How many?"},
        {"source": "data/CoT/gsm_train.json", "output": "None.", "instruction": NEAR_MISS},
        {"source": "data/CoT/gsm_train.json", "output": " ", "instruction": "What is nothing?"},
    ]
    array(root / "TIGER-Lab/MathInstruct/MathInstruct.json", math)
    queries = [
        {
            "type": "GSM_Rephrased",
            "query": f"Add {n} and 1.",
            "original_question": "?",
            "response": f"The answer: {n + 1}",
        }
        for n in range(15)
    ]
    array(root / "meta-math/MetaMathQA/MetaMathQA-395K.json", queries)
    make_benchmarks(root)


def make_benchmarks(root: Path) -> None:
    """The benchmarks that the recipes name."""
    body = "    for item in sorted(numbers, key=abs):\n        yield item * 2 if item % 3 else item\n"
    human = {"task_id": "HumanEval/0", "prompt": "def doubled(numbers):\n", "canonical_solution": body}
    parquet(root / "openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet", [human])
    parquet(root / "openai/gsm8k/main/test-00000-of-00001.parquet", [{"question": LEAK, "answer": "#### 7"}])
    (root / "openai/gsm8k/README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: test, path: main/test-*}\n---\n"
    )
    lines(root / "HuggingFaceH4/MATH-500/test.jsonl", [{"problem": "Find $x$.", "solution": "$1$", "answer": "1"}])
    aqua = {"question": "How far?", "options": ["A)1", "B)2"], "rationale": "Two.", "correct": "B"}
    parquet(root / "deepmind/aqua_rat/raw/test-00000-of-00001.parquet", [aqua])
    (root / "deepmind/aqua_rat/README.md").write_text(
        "---\nconfigs:\n- config_name: raw\n  data_files:\n  - {split: test, path: raw/test-*}\n---\n"
    )
    truthful = {"question": "Is it so?", "best_answer": "It is not so.", "correct_answers": ["No"]}
    parquet(root / "truthfulqa/truthful_qa/generation/validation-00000-of-00001.parquet", [truthful])
    (root / "truthfulqa/truthful_qa/README.md").write_text(
        "---\nconfigs:\n- config_name: generation\n  data_files:\n"
        "  - {split: validation, path: generation/validation-*}\n---\n"
    )
