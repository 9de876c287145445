"""Every bad input to a stage, as a user meets it: exit code 2, one line that says what and where, nothing written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megafuser.cli.main import main
from megafuser.conversion.hf_to_mcore import import_specialist
from tests.fused_case import make_case, write_config
from tests.parallel.launch import ROOT, torchrun
from tests.tiny_models import make_llama

WARMUP = ("warmup", "--config", "config.yaml")
JOINT = ("joint", "--config", "config.yaml")
ERROR = "megafuser: error: "


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Specialists, data, `config.yaml` with paths that start there, and `begun`, a run whose warm-up did one step."""
    root = tmp_path_factory.mktemp("case")
    values = make_case(root, train=3, valid=1)
    for stage in ("warmup", "joint"):
        values[stage] = {"steps": 3, "samples_per_domain": 1, "lr": 1e-3}
    path = write_config(root / "config.yaml", values)
    path.write_text(path.read_text().replace(f"{root}/", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main([*WARMUP, "warmup.steps=1", "run_dir=begun"]) == 0
    return root


@pytest.fixture
def here(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the case as the working directory, to be damaged."""
    copy = shutil.copytree(case, tmp_path / "case")
    monkeypatch.chdir(copy)
    return copy


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Everything below, with sizes and times."""
    states = {str(path.relative_to(root)): path.lstat() for path in root.rglob("*")}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def only_line(error: str) -> str:
    """The one line of an error; what a run says about itself before it may stand in front."""
    *before, line = error.splitlines()
    assert line.startswith(ERROR)
    assert all(other.startswith("megafuser: ") and not other.startswith(ERROR) for other in before)
    return line


def refusal(root: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """Runs a command that must refuse, and gives what it says."""
    before = tree(root)
    capsys.readouterr()
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert tree(root) == before
    return only_line(output.err)


def write_line(path: Path, number: int, line: str) -> None:
    """Puts a line into a file's line `number`."""
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


def swap_ids(directory: Path) -> None:
    """Lets two tokens change ids in a tokenizer."""
    path = directory / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(values))


def no_huggingface_files(directory: Path) -> None:
    shutil.rmtree(directory / "huggingface")


def no_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def cut_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text()[:40])


TRAIN = Path("data/code.train.jsonl")
VALID = Path("data/math.valid.jsonl")
CODE = Path("mcore/code")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (TRAIN.unlink, ["data/code.train.jsonl does not exist", "data.domains.code"]),
        (VALID.unlink, ["data/math.valid.jsonl does not exist", "data.domains.math"]),
        (lambda: TRAIN.write_text(""), ["data/code.train.jsonl is empty"]),
        (lambda: TRAIN.write_text("\n \n"), ["data/code.train.jsonl is empty"]),
        (lambda: write_line(TRAIN, 2, '{"instruction": "a", '), ["data/code.train.jsonl:2: not JSON"]),
        (lambda: write_line(TRAIN, 3, "[1, 2]"), ["data/code.train.jsonl:3: a JSON list, not an object"]),
        (lambda: write_line(TRAIN, 3, '{"instruction": "a"}'), ["data/code.train.jsonl:3: lacks `response`"]),
        (lambda: write_line(VALID, 1, '{"response": "a"}'), ["data/math.valid.jsonl:1: lacks `instruction`"]),
        (lambda: write_line(TRAIN, 1, '{"messages": [{"role": "user"}]}'), ["data/code.train.jsonl:1: "]),
        (lambda: write_line(TRAIN, 1, '{"instruction": "a", "response": 7}'), ["jsonl:1: `response` must be a string"]),
        (lambda: shutil.rmtree(CODE), ["specialist code: mcore/code is not a directory"]),
        (lambda: no_manifest(CODE), ["specialist code: mcore/code is not a megafuser checkpoint", "manifest.json"]),
        (lambda: cut_manifest(CODE), ["specialist code: mcore/code/manifest.json is damaged"]),
        (lambda: no_huggingface_files(CODE), ["specialist code: mcore/code/huggingface is not a directory"]),
        (
            lambda: swap_ids(CODE / "huggingface"),
            ["shared vocabulary is not a prefix", "'a' to text but 'b' to code", "later ids agree again"],
        ),
    ],
)
def test_damaged_inputs(
    here: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[], object], says: list[str]
) -> None:
    damage()
    line = refusal(here, capsys, WARMUP)
    assert all(words in line for words in says), line
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["warmup.stps=3"], "warmup.stps: unknown key; the nearest valid one is 'warmup.steps'"),
        (["specialists.0.checkpiont=x"], "the nearest valid one is 'specialists.0.checkpoint'"),
        (["warmup.steps=many"], "warmup.steps: must be an integer, not the text 'many'"),
        (["data.domains.text.train={a: b}"], "data.domains.text.train: must be"),
        (["precision.dtype=fp16"], "precision.dtype: "),
        (["specialists.1.checkpoint=hf/code"], "hf/code is not a megafuser checkpoint"),
        (["specialists.1.checkpoint=hf/code"], "convert it with tools/convert_hf_to_mcore.py"),
        (["specialists.1.checkpoint=begun/warmup/step_000001"], "is a warmup checkpoint; give a specialist checkpoint"),
        (["specialists.1.checkpoint=data/code.train.jsonl"], "data/code.train.jsonl is not a directory"),
        (["specialists.1.template=altra"], "specialists.1.template: "),
        (["data.end_token=<none>"], "data.end_token '<none>'"),
        (["data.sequence_length=2"], "no train sample of domain text is left: 3 (longer than 2 positions)"),
        (["parallel.tensor=2"], "tensor 2 x pipeline 1 needs a multiple of 2 processes, but there are 1"),
        (["parallel.pipeline=4"], "needs a multiple of 4 processes, but there are 1"),
        (["device=cuda"], "device: "),
        (["backend=transformer_engine"], "backend: "),
        (["precision.fp8=delayed"], "precision.fp8: "),
        (["specialists.1.checkpoint=" + "x" * 300], "File name too long"),
        (["run_dir=" + "x" * 300], "File name too long"),
    ],
)
def test_impossible_settings(case: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(case)
        assert says in refusal(case, capsys, [*WARMUP, *overrides])
    assert not (case / "run").exists()


@pytest.mark.parametrize(
    ("world", "overrides", "says"),
    [
        (3, ["parallel.tensor=3"], "parallel.tensor: 3 neither divides the 2 key-value heads of specialist text nor"),
        (8, ["parallel.tensor=8"], "the nearest that works for all specialists on 8 processes is parallel.tensor=4"),
        (3, ["parallel.pipeline=3"], "parallel.pipeline: 3 stages need at least 3 layers, and specialist code has 2"),
        (
            4,
            ["parallel.pipeline=4"],
            "the nearest that works for all specialists on 4 processes is parallel.pipeline=2",
        ),
        (
            2,
            ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
            "parallel.virtual_pipeline: 2 chunks on each of 2 stages need at least 4 layers, and specialist code has 2",
        ),
        (
            1,
            ["memory.recompute=full", "memory.recompute_layers=3"],
            "memory.recompute_layers: 3 does not divide the 4 layers of specialist text",
        ),
        (3, ["parallel.tensor=2"], "needs a multiple of 2 processes, but there are 3"),
        (2, ["parallel.tensor=2", "parallel.sequence=true", "data.sequence_length=65"], "data.sequence_length: 65"),
    ],
)
def test_layouts_that_do_not_divide(
    case: Path, capsys: pytest.CaptureFixture[str], world: int, overrides: list[str], says: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(case)
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", str(world))
        line = refusal(case, capsys, [*WARMUP, *overrides])
    assert says in line
    assert "the nearest that " in line or "needs a multiple" in line


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["seed=7"], "begun/warmup/step_000001 is of another configuration (seed: 1234"),
        (["warmup.lr=0.5"], "(warmup.lr: 0.001"),
        (["gate.hidden_size=8"], "(gate.hidden_size: 16"),
        (["data.sequence_length=128"], "(data.sequence_length: 384"),
    ],
)
def test_a_checkpoint_of_another_configuration(
    case: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(case)
        assert says in refusal(case, capsys, [*WARMUP, "run_dir=begun", *overrides])


@pytest.mark.parametrize("command", [WARMUP, JOINT], ids=["warmup", "joint"])
def test_other_content_of_a_specialist(here: Path, capsys: pytest.CaptureFixture[str], command: Sequence[str]) -> None:
    """Of the same name and architecture at the same place."""
    make_llama(here / "other", seed=5, extra_tokens=16, rope_theta=1e6, num_hidden_layers=2)
    import_specialist(here / "other", here / CODE, verify="none", overwrite=True)
    line = refusal(here, capsys, [*command, "run_dir=begun"])
    assert "begun/warmup/step_000001 was made with another specialist code" in line


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "no warm-up checkpoint in run/warmup; run `megafuser warmup` first or set joint.init_from"),
        (["joint.init_from=nowhere"], "no checkpoint at nowhere"),
        (["joint.init_from=data"], "no checkpoint at data"),
        (["joint.init_from=mcore/text"], "joint.init_from: mcore/text is a specialist"),
        (["run_dir=begun", "gate.hidden_size=8"], "gate.hidden_size: 8, but the gate of "),
        (["run_dir=begun", "specialists.2.name=maths"], "of the specialists text, code, math, but the configuration"),
    ],
)
def test_no_start_for_the_second_stage(
    case: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(case)
        assert says in refusal(case, capsys, [*JOINT, *overrides])


def test_as_a_program(here: Path) -> None:
    write_line(TRAIN, 2, "{")
    before = tree(here)
    done = subprocess.run(
        [sys.executable, "-m", "megafuser", *WARMUP],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert only_line(done.stderr).startswith(f"{ERROR}data/code.train.jsonl:2: not JSON")
    assert done.stdout == "" and tree(here) == before


@pytest.mark.slow  # `tests/parallel/test_checkpoints.py` has a refusal of two ranks without torchrun
@pytest.mark.parallel
def test_two_ranks_print_one_line(here: Path) -> None:
    """Under torchrun, whose own report of the failed processes comes after it."""
    VALID.unlink()
    before = tree(here)
    done = torchrun(2, "megafuser", WARMUP, timeout=600, directory=here)
    assert done.returncode == 1
    own = [line for line in done.stderr.splitlines() if line.startswith("megafuser: ")]
    # a busy machine may not have ended rank 1 before it speaks for itself
    own = [line for line in own if not line.startswith(f"{ERROR}rank 1: ")]
    assert only_line("\n".join(own)) == f"{ERROR}{VALID} does not exist; correct data.domains.math.valid.0"
    assert f'File "{ROOT / "megafuser"}' not in done.stderr
    assert tree(here) == before
