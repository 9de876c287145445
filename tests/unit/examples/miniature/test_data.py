"""The miniature's data: no group and no content in two parts, problems that nothing else has."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from examples.miniature import data, run
from examples.miniature.data import shared_out
from examples.miniature.problems import exact_matches
from examples.miniature.settings import FAST, FULL, read_settings, write_settings
from examples.quickstart.make_data import split_parts, split_samples
from examples.quickstart.sources import Sample
from megafuser.errors import UserError


def test_no_group_and_no_content_is_in_two_parts() -> None:
    made = [Sample(f"task {index}", f"answer {index}", f"group {index // 4}") for index in range(2000)]
    # the same answer in many groups, the same task in other letters
    made += [Sample(f"other task {index}", "Common answer", f"group c{index}") for index in range(100)]
    made += [Sample(f"TASK  {index}", f"answer b{index}", f"group d{index}") for index in range(500)]
    parts = split_parts(made, (10, 20))
    assert [round(len(part), -2) for part in parts] == [1400, 200, 400]
    for key in ("group", "instruction", "response"):
        values = [{" ".join(getattr(one, key).lower().split()) for one in part} for part in parts]
        assert not (values[0] & values[1] or values[0] & values[2] or values[1] & values[2]), key
    everything = [one.instruction.lower().split()[-1] for part in parts for one in part if one.group[6] != "c"]
    assert len(everything) == len(set(everything))


def test_two_parts_are_the_quickstarts_split() -> None:
    made = [Sample(f"task {index}", f"answer {index % 300}", f"group {index // 3}") for index in range(900)]
    train, valid = split_samples(made, 10)
    assert [train, valid] == split_parts(made, (10,))
    assert 40 < len(valid) < 140


@pytest.fixture
def packages() -> Iterator[Path]:
    """The folder of installed packages, which serves as a wheel does; what is imported of it is forgotten again."""
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None or spec.origin is None:
        pytest.skip("reasoning_gym is not installed")

    def taken_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]
        return {name: sys.modules.pop(name) for name in names}

    whole = taken_out()
    yield Path(spec.origin).parents[1]
    taken_out()
    sys.modules.update(whole)


def test_arithmetic_is_right_and_in_one_part_only(packages: Path) -> None:
    """The package is imported without what its `__init__` does."""
    parts = data.sum_parts(packages, FAST)
    parts[:1] = shared_out(parts[0], 50)
    assert len(parts[1]) == 50
    problems = data.held_out_problems(packages, FAST.problems, [one for part in parts for one in part])
    questions = [{one.instruction for one in part} for part in parts] + [{one["question"] for one in problems}]
    assert sum(map(len, questions)) == len(set.union(*questions)) and all(questions)
    # nor is the same sum in two wordings in two parts, the two that train aside
    specialist, fusion, *others = ({re.sub("[^-+*0-9]", "", one) for one in part} for part in questions)
    sums = [specialist | fusion, *others]
    assert not any(one & other for index, one in enumerate(sums) for other in sums[index + 1 :])
    answers = [(one.instruction, one.response) for part in parts for one in part]
    answers += [(one["question"], one["answer"]) for one in problems]
    for question, answer in answers:
        expression = question.removeprefix("Calculate ").removesuffix(".").split(": ")[-1].removesuffix("=")
        assert eval(expression) == int(answer), question
    assert {one["kind"] for one in problems} == {"chain_sum", "basic_arithmetic"}
    assert len(problems) == 2 * FAST.problems


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_settings(FAST, path)
    write_settings(FAST, path)
    assert read_settings(path) == FAST
    with pytest.raises(UserError, match=r"made with other settings \(.*joint_steps.*\); remove it"):
        write_settings(FULL, path)


def test_only_the_number_alone_is_a_right_answer() -> None:
    problems = [{"prompt": "", "answer": "12"}] * 4
    assert exact_matches(["12", " 12\n", "12.", "1 12"], problems) == [True, True, False, False]


def test_wrong_options_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(FULL, tmp_path / "settings.json")
    for options, message in (
        ((), "made with other settings"),
        (("--into", str(tmp_path / "none.md")), "none.md must have one line <!-- miniature:begin -->"),
        (("--into", str(tmp_path)), "Is a directory"),
    ):
        monkeypatch.setattr(sys, "argv", ["run.py", "--fast", "--out", str(tmp_path), *options])
        with pytest.raises(SystemExit) as ended:
            run.main()
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == "" and message in said.err
        assert said.err.startswith("megafuser: error: ") and said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_what_merges_models_is_missed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not hours later, by the first merge."""
    monkeypatch.setattr(run, "HERE", tmp_path / "miniature")
    monkeypatch.setattr(sys, "argv", ["run.py", "--fast", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2 and "start with bash examples/miniature/run.sh" in capsys.readouterr().err


def test_what_is_kept_for_fusion_is_not_in_the_specialists_part() -> None:
    specialist, fusion = shared_out(list(range(100)), 30)
    assert sorted(specialist + fusion) == list(range(100)) and len(fusion) == 30
    specialist, fusion = shared_out(list(range(100)), 30, most=40)
    assert len(specialist) == 40 and len(fusion) == 30 and not set(specialist) & set(fusion)
    with pytest.raises(SystemExit, match="50 training samples are too few to keep 30 from a specialist"):
        shared_out(list(range(50)), 30)
