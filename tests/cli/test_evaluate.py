"""`megafuser evaluate` as a user runs it: the harness's own scores, a table, a second go, bad input."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.cli.main import main
from megafuser.conversion.export import export_checkpoint
from megafuser.errors import UserError
from megafuser.harness.sandbox import Sandbox
from megafuser.harness.task_loading import load_tasks
from megafuser.inference.engine import Engine
from megafuser.runtime.append_log import AppendLog
from tests.cli.stopping import finish, rank_variables, start_command
from tests.fused_case import SPECIALISTS
from tests.parallel.launch import run_commands

TASKS = Path(__file__).parents[2] / "examples" / "tasks"
KINDS = "chain_sum_choice_local,chain_sum_local,short_text,stopped"
STOPPED: dict[str, Any] = {
    "task": "stopped",
    "include": str(TASKS / "chain_sum_local.yaml"),
    "num_fewshot": 1,
    "fewshot_split": "test",
    "generation_kwargs": {"until": ["\n", "e", "<"], "max_gen_toks": 12},
}
SHORT_TEXT: dict[str, Any] = {  # some windows long, for the tiny models' letters
    "task": "short_text",
    "include": str(TASKS / "pydoc_perplexity_local.yaml"),
    "dataset_kwargs": {"size": 3, "characters": 1200},
}
SHORT_CODE: dict[str, Any] = {
    "task": "short_code",
    "include": str(TASKS / "humaneval_local.yaml"),
    "doc_to_text": "Write {{entry_point}}.",
    "generation_kwargs": {"until": [], "max_gen_toks": 8},
}


@pytest.fixture(scope="module")
def trained(both_stages: Path) -> Path:
    """The run that went through both stages; beside it an exported specialist and tasks of the user's."""
    export_checkpoint(both_stages / "run" / "joint", both_stages / "text", specialist="text", verify="none")
    (both_stages / "tasks").mkdir()
    for task in (STOPPED, SHORT_TEXT, SHORT_CODE):
        (both_stages / "tasks" / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return both_stages


def evaluate(root: Path, out: Path, tasks: str, *arguments: str) -> int:
    paths = ["--include-path", str(TASKS), "--include-path", str(root / "tasks")]
    # a gibibyte of caches, as without a word, takes long to fill with zeros
    common = ["evaluate", "--checkpoint", str(root / "run"), "--tasks", tasks, "--out", str(out), "--cache-gib", "0.05"]
    return main([*common, *paths, *arguments])


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text("utf-8"))


def metrics(results: dict[str, Any]) -> dict[str, float]:
    return {
        f"{task} {name}": value
        for task, values in results["results"].items()
        for name, value in values.items()
        if isinstance(value, float)
    }


def answers(samples: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(repr(sample["arguments"]), sample["resps"]) for sample in sorted(samples, key=lambda one: one["doc_id"])]


def flattened(value: Any) -> list[Any]:
    return [one for part in value for one in flattened(part)] if isinstance(value, (list, tuple)) else [value]


def test_a_forced_specialist_scores_as_its_export_does_in_the_harness(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluate(trained, out, KINDS, "--raw", "--force", "text", "--limit", "3") == 0
    lm = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(trained / "text", dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(trained / "text"),
        batch_size=1,
    )
    manager = TaskManager(include_path=[str(TASKS), str(trained / "tasks")], include_defaults=False)
    expected = simple_evaluate(lm, tasks=KINDS.split(","), limit=3, task_manager=manager, bootstrap_iters=0)
    found = results_of(out)
    theirs = {name: value for name, value in metrics(expected).items() if "stderr" not in name}
    assert len(theirs) >= 7
    assert {name: metrics(found)[name] for name in theirs} == pytest.approx(theirs, rel=1e-4)
    for task in KINDS.split(","):
        lines = (out / "samples" / "text" / f"{task}.jsonl").read_text("utf-8").splitlines()
        own = answers([json.loads(line) for line in lines])
        for (arguments, ours), (_, wanted) in zip(own, answers(expected["samples"][task]), strict=True):
            flat, found_flat = flattened(wanted), flattened(ours)
            assert len(found_flat) == len(flat) > 0, arguments
            for value, right in zip(found_flat, flat, strict=True):
                assert value == (pytest.approx(right, abs=1e-4, rel=1e-6) if isinstance(right, float) else right)


def test_each_specialist_alone_has_a_column(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert evaluate(trained, out, "chain_sum_choice_local,short_text", "--alone", "--limit", "2") == 0
    lines = (out / "table.md").read_text("utf-8").splitlines()
    header = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert header == ["task", "metric", "fused", *SPECIALISTS, "uniform"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:] if line.startswith("|")]
    results = results_of(out)
    (row,) = (row for row in rows if row[1] == "bits_per_byte")
    each = [results, *(results["alone"][name] for name in header[3:])]
    assert row[2:] == [f"{one['results']['short_text']['bits_per_byte,none']:.4f}" for one in each]
    assert len(set(row[2:])) == 5
    assert "chain_sum_choice_local" in capsys.readouterr().out
    # alone is what --force gives
    assert evaluate(trained, tmp_path / "code", "short_text", "--force", "code", "--limit", "2") == 0
    forced = results_of(tmp_path / "code")["results"]["short_text"]
    assert forced["bits_per_byte,none"] == pytest.approx(each[2]["results"]["short_text"]["bits_per_byte,none"])


def test_it_goes_on_where_it_was_cut_off(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    tasks, limit = "stopped,chain_sum_choice_local", ("--limit", "4")
    steps = []
    original = Engine.step

    def step(self: Engine, asks: Any) -> Any:
        steps.append(len(asks))
        if len(steps) == cut:
            raise KeyboardInterrupt
        return original(self, asks)

    cut = 0
    monkeypatch.setattr(Engine, "step", step)
    assert evaluate(trained, tmp_path / "whole", tasks, *limit) == 0
    whole, cut = len(steps), len(steps) - 1
    steps.clear()
    assert evaluate(trained, tmp_path / "cut", tasks, *limit) == 130
    assert not (tmp_path / "cut" / "results.json").exists()
    capfd.readouterr()
    assert evaluate(trained, tmp_path / "cut", tasks, "--limit", "5") == 2
    assert "unfinished evaluation with other settings (limit)" in capfd.readouterr().err
    steps.clear()
    cut = 0
    assert evaluate(trained, tmp_path / "cut", tasks, *limit) == 0
    assert 0 < len(steps) < whole // 2
    assert results_of(tmp_path / "cut")["results"] == results_of(tmp_path / "whole")["results"]
    # a finished one is refused, and replaced when that is wanted; nothing that is not an evaluation is
    assert evaluate(trained, tmp_path / "cut", tasks, *limit) == 2
    assert "exists; choose another directory or give --overwrite" in capfd.readouterr().err
    steps.clear()
    assert evaluate(trained, tmp_path / "cut", "chain_sum_choice_local", "--limit", "1", "--overwrite") == 0
    assert steps
    assert list(results_of(tmp_path / "cut")["results"]) == ["chain_sum_choice_local"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    assert evaluate(trained, tmp_path / "mine", tasks, "--overwrite") == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_after_a_full_disk_the_same_command_goes_on(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    kept: list[Any] = []
    original = AppendLog.append

    def append(self: AppendLog, record: Any) -> None:
        if len(kept) == 3:
            raise OSError(28, "No space left on device")
        kept.append(record)
        original(self, record)

    out, again = tmp_path / "out", ("chain_sum_choice_local", "--limit", "2")
    with monkeypatch.context() as patch:
        patch.setattr(AppendLog, "append", append)
        assert evaluate(trained, out, *again) == 75
    answers = out / "answers" / "fused.jsonl"
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"megafuser: error: {answers} cannot be written (No space left on device); make room")
    assert not (out / "results.json").exists()
    assert evaluate(trained, out, *again) == 0
    assert [json.loads(line) for line in answers.read_text("utf-8").splitlines()][:3] == kept


def test_a_signal_ends_it_between_two_steps(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    steps = 0
    original = Engine._run

    def run(self: Engine, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(Engine, "_run", run)
    out, tasks = tmp_path / "out", "chain_sum_choice_local,stopped"
    again = ("--limit", "3")
    assert evaluate(trained, out, tasks, *again) == 75
    said = capfd.readouterr().err
    assert f"stopped, since SIGTERM was received; answers so far are in {out}; run the same command again" in said
    assert steps == 4
    kept = (out / "answers" / "fused.jsonl").read_bytes()
    assert kept.count(b"\n") > 0
    assert not (out / "results.json").exists()
    assert evaluate(trained, out, tasks, *again) == 0
    assert (out / "answers" / "fused.jsonl").read_bytes().startswith(kept)
    assert json.loads((out / "evaluation.json").read_text())["finished"]
    # --overwrite begins again, also with one that is not finished
    steps = 0
    assert evaluate(trained, out, tasks, *again, "--overwrite") == 75
    assert f"answers so far are in {out}; run the same command without --overwrite to go on" in capfd.readouterr().err
    assert not (out / "results.json").exists()
    steps = 0
    assert evaluate(trained, out, tasks, *again, "--overwrite") == 75
    assert (out / "answers" / "fused.jsonl").read_bytes() == kept
    # a finished one is replaced, and one of other settings
    assert evaluate(trained, out, "chain_sum_choice_local", "--limit", "1", "--overwrite") == 0
    assert (out / "answers" / "fused.jsonl").read_bytes().count(b"\n") < kept.count(b"\n")


def test_a_stage_that_goes_on_meanwhile_changes_nothing(trained: Path, tmp_path: Path, monkeypatch) -> None:
    """The checkpoint whose answers are kept is the one that is opened, whatever `latest` says by then."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)

    def load_and_move(*arguments: Any, **settings: Any) -> Any:
        (run / "joint" / "latest").unlink()  # so that the run's latest is the warm-up's
        return load_tasks(*arguments, **settings)

    monkeypatch.setattr("megafuser.harness.evaluate.load_tasks", load_and_move)
    common = ["evaluate", "--checkpoint", str(run), "--out", str(tmp_path / "out"), "--limit", "1"]
    assert main([*common, "--tasks", "chain_sum_choice_local", "--include-path", str(TASKS)]) == 0
    assert "run/joint/step_000002" in (tmp_path / "out" / "table.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parallel
def test_a_signal_to_two_ranks(trained: Path, tmp_path: Path) -> None:
    """Rank 0 leaves with 75, the other with 0, as srun needs it."""
    out = tmp_path / "out"
    command = ["evaluate", "--checkpoint", str(trained / "run"), "--tasks", "chain_sum_local", "--out", str(out)]
    ranks = [
        start_command(*command, "--include-path", str(TASKS), "--tensor", "2", "--max-running", "1", **variables)
        for variables in rank_variables(2)
    ]
    answers = out / "answers" / "fused.jsonl"
    deadline = time.monotonic() + 300
    while not answers.exists() or not answers.read_bytes():
        assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
        time.sleep(0.01)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    ended = [finish(rank) for rank in ranks]
    assert [code for code, _, _ in ended] == [75, 0], ended
    assert "run the same command again to go on" in ended[0][2]
    assert not any("Traceback" in error for _, _, error in ended)
    assert not (out / "results.json").exists()


def test_code_runs_where_it_is_allowed(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    try:
        Sandbox().check()
    except UserError as error:
        pytest.skip(str(error))
    ran = []
    original = Sandbox.run
    monkeypatch.setattr(Sandbox, "run", lambda self, program: ran.append(program) or original(self, program))
    assert evaluate(trained, tmp_path / "out", "short_code", "--limit", "2") == 2
    assert "give --allow-code-execution" in capfd.readouterr().err
    assert not ran
    assert evaluate(trained, tmp_path / "out", "short_code", "--limit", "2", "--allow-code-execution") == 0
    assert [("check(has_close_elements)" in one, "check(separate_paren_groups)" in one) for one in ran[-2:]] == [
        (True, False),
        (False, True),
    ]
    assert results_of(tmp_path / "out")["results"]["short_code"]["pass@1,none"] == 0.0


@pytest.mark.slow
@pytest.mark.parallel
def test_two_ranks_find_what_one_finds(trained: Path, tmp_path: Path) -> None:
    tasks = ["--tasks", "stopped,chain_sum_choice_local", "--limit", "2", "--alone"]
    paths = ["--include-path", str(TASKS), "--include-path", str(trained / "tasks")]
    common = ["evaluate", "--checkpoint", str(trained / "run"), *tasks, *paths]
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    run_commands(2, [[*common, "--out", str(tmp_path / size), f"--{size}", "2"] for size in ("tensor", "pipeline")])
    one = results_of(tmp_path / "one")
    for size in ("tensor", "pipeline"):
        two = results_of(tmp_path / size)
        assert metrics(two) == pytest.approx(metrics(one), rel=1e-4, nan_ok=True)
        assert list(two["alone"]) == [*SPECIALISTS, "uniform"]
        for name in two["alone"]:
            assert metrics(two["alone"][name]) == pytest.approx(metrics(one["alone"][name]), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", ","], "--tasks is empty"),
        (["--tasks", "chain_sum_local", "--include-path", str(TASKS), "--out", "/dev/null/out"], "cannot be written"),
        (["--tasks", "chain_sum_local", "--include-path", str(TASKS), "--out", "/proc/out"], "cannot be written"),
        (["--tasks", "gsm8kk"], "no task 'gsm8kk'; the nearest valid one is 'gsm8k'"),
        (["--tasks", "humaneval"], "give --allow-code-execution"),
        (["--tasks", "chain_sum_local,chain_sum_local", "--include-path", str(TASKS)], "chain_sum_local twice"),
        (["--tasks", "gsm8k", "--include-path", "missing"], "--include-path missing is not a directory"),
        (["--tasks", "gsm8k", "--limit", "0"], "whole number of at least 1"),
        (["--tasks", "gsm8k", "--num-fewshot", "-1"], "whole number of at least 0"),
        (["--tasks", "gsm8k", "--alone", "--force", "text"], "leave --force out"),
        (["--tasks", "gsm8k", "--no-network-isolation"], "goes with --allow-code-execution"),
        (["--tasks", "gsm_symbolic_local", "--include-path", str(TASKS)], "wants answers of 256 tokens"),
        (["--tasks", "chain_sum_local", "--include-path", str(TASKS), "--force", "poet"], "no specialist 'poet'"),
    ],
)
def test_bad_input_is_one_line(trained: Path, tmp_path: Path, monkeypatch, capfd, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--checkpoint", str(trained / "run"), "--out", "out", *arguments]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert error[-1].startswith("megafuser: error: ")
    assert message in error[-1]
    assert not list(tmp_path.iterdir())


def test_a_yaml_file_that_names_no_function_is_one_line(trained: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "task.yaml").write_text("task: nowhere\ncustom_dataset: !function nofile.load\n")
    common = ["evaluate", "--checkpoint", str(trained / "run"), "--out", str(tmp_path / "out")]
    assert main([*common, "--tasks", "nowhere", "--include-path", str(tmp_path)]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("megafuser: error: task nowhere: Cannot import module 'nofile'")
    assert error.endswith("correct its YAML file")


def test_a_missing_network_is_one_line(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    out = tmp_path / "out"
    assert main(["evaluate", "--checkpoint", str(trained / "run"), "--out", str(out), "--tasks", "gsm8k"]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "the data of task gsm8k cannot be had: Couldn't reach 'openai/gsm8k' on the Hub" in error
    assert not out.exists()
