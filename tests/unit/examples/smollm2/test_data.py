"""The SmolLM2 example's data and tasks: short samples, nothing in two parts, answers that are judged rightly."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from examples.quickstart.samples import DOMAINS, padded, response_loss
from examples.quickstart.sources import Sample
from examples.shared.kept_settings import keep_values
from examples.shared.same_data import drawn as drawn_by_fusion
from examples.smollm2 import data, run, tune
from examples.smollm2.losses import token_losses
from examples.smollm2.settings import CHAT_TEMPLATE, FAST, FULL, PROMPT, TASKS, TEMPLATE, Settings, as_json
from megafuser.data.templates import get_template
from megafuser.errors import UserError
from tests.parallel.launch import ROOT

TASKS_DIRECTORY = ROOT / "examples" / "smollm2" / "tasks"


class Words:
    """A tokenizer whose tokens are words."""

    eos_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [1 + sum(map(ord, word)) for word in text.split()]}


def task(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"smollm2_task_{name}", TASKS_DIRECTORY / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(**changes: Any) -> Any:
    limits = {"text": 20, "code": 20, "math": 20}
    return Settings(**{"most_tokens": limits, "fusion": 200, "dev": 30, "test": 60} | changes)


def made() -> list[Any]:
    """Groups of four; every third sample is too long; some answers are in many groups."""
    words = "word " * 18
    return [
        Sample(
            f"task {index}" + (words if index % 3 == 0 else ""),
            "Common answer" if index % 50 == 0 else f"answer {index}",
            f"group {index // 4}",
        )
        for index in range(3000)
    ]


def test_parts_share_nothing_and_samples_are_short_and_whole() -> None:
    parts = data.domain_parts(made(), "math", Words(), settings())
    assert [len(part) for part in parts[1:]] == [200, 30, 60] and len(parts[0]) > 300
    originals = set(made())
    for part in parts:
        for one in part:
            assert one in originals
            assert len(PROMPT.format(one.instruction).split()) + len(one.response.split()) + 1 <= 20
    for key in ("group", "instruction", "response"):
        train, fusion, *held_out = [{" ".join(getattr(one, key).lower().split()) for one in part} for part in parts]
        # a specialist and fusion may learn from the same template
        values = [train | fusion, *held_out] if key == "group" else [train, fusion, *held_out]
        assert sum(map(len, values)) == len(set().union(*values)), key


def test_every_part_of_code_has_programs() -> None:
    asked = [f"Write the Python function f{index}." if index % 4 else f"Compute {index}" for index in range(3000)]
    code = [Sample(own, f"answer {index} {'w ' * (index % 30)}", f"group {index}") for index, own in enumerate(asked)]
    own = settings(most_tokens={"code": 20, "codeio": 30}, library=300)
    parts = data.domain_parts(code, "code", Words(), own)
    kinds = [[data.kind(one, "code") for one in part] for part in parts]
    for part, size in zip(kinds[1:], (200, 30, 60), strict=True):
        assert len(part) == size and part.count("codeio") == size // 10
    # train has all that are left
    assert kinds[0].count("code") == 300 and kinds[0].count("codeio") > 200
    for part in parts:
        for one in part:
            words = len(one.instruction.split()) + len(one.response.split()) + 3
            assert words <= (30 if data.kind(one, "code") == "codeio" else 20)


def test_samples_with_a_piece_of_a_held_out_one_are_dropped() -> None:
    body = " ".join(f"w{index}" for index in range(10))
    held_out = [Sample("How?", f"def f({body}): return", "held out")]
    copy, shorter = Sample("Else?", f"  DEF f({body}\n) ", "a"), Sample("Else?", f"f({body}", "b")
    asked = Sample(f"def f({body})", "Answer", "c")
    assert data.without_copies([copy, shorter, asked], held_out) == [shorter]


def test_too_few_samples_end_the_run() -> None:
    with pytest.raises(SystemExit, match=r"math has \d+ samples for the specialist only"):
        data.domain_parts(made(), "math", Words(), settings(fusion=800))
    with pytest.raises(SystemExit, match=r"math has \d+ samples of 5000 for test"):
        data.domain_parts(made(), "math", Words(), settings(test=5000))


def test_the_prompt_is_what_the_fused_run_is_given() -> None:
    expected = get_template(TEMPLATE, None).turn("Say 1 + 1.\nQuickly", None, True)
    assert PROMPT.format("Say 1 + 1.\nQuickly") == expected
    jinja2 = pytest.importorskip("jinja2")
    messages = [{"role": "user", "content": "Say 1 + 1.\nQuickly"}]
    # as transformers renders chat templates
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(CHAT_TEMPLATE)
    assert template.render(messages=messages, add_generation_prompt=True) == expected


def test_a_fine_tune_sees_whole_passes_up_to_its_tokens() -> None:
    samples = [([index] * (5 + index % 3), 2) for index in range(40)]
    own = settings(tune_samples=8, tune_tokens=400)
    steps = list(tune.drawn(samples, own, 1))
    sizes = [sum(len(ids) for ids, _ in step) for step in steps]
    assert sum(sizes) <= 400 < sum(sizes) + max(sizes)
    first_pass = [ids[0] for step in steps[:5] for ids, _ in step]
    assert sorted(first_pass) == list(range(40)) and first_pass != sorted(first_pass)
    assert steps == list(tune.drawn(samples, own, 1)) != list(tune.drawn(samples, own, 2))
    # little is padding: a step has samples of similar lengths
    varied = [([index] * (5 + 7 * index % 60), 2) for index in range(128)]
    own = settings(tune_samples=8, tune_tokens=2 * sum(len(ids) for ids, _ in varied))
    steps = list(tune.drawn(varied, own, 1))
    widths = [max(len(ids) for ids, _ in step) for step in steps]
    assert len(steps) == 32 and 8 * sum(widths) < 1.15 * own.tune_tokens
    assert widths[:8] != sorted(widths[:8])


@pytest.mark.parametrize("domains", [DOMAINS, ("code",)])
def test_models_are_trained_further_on_the_fused_runs_samples(domains: tuple[str, ...]) -> None:
    own = settings(samples_per_domain=2, warmup_steps=3, joint_steps=4)
    sizes = [20, 30, 25]
    fusion = {
        name: [([place, index] * (1 + index % 5), 1) for index in range(size)]
        for place, (name, size) in enumerate(zip(DOMAINS, sizes, strict=True))
    }
    steps = list(tune.drawn_as_fused(fusion, domains, own))
    expected = list(drawn_by_fusion(own, own.seed, sizes, ("warmup", "joint")))
    assert len(steps) == 7
    for step, pairs in zip(steps, expected, strict=True):
        wanted = [[domain, sample] for domain, sample in pairs if DOMAINS[domain] in domains]
        assert len(wanted) == 2 * len(domains) and sorted(ids[:2] for ids, _ in step) == sorted(wanted)
        assert [len(ids) for ids, _ in step] == sorted(len(ids) for ids, _ in step)


def test_the_model_that_is_kept_has_the_lowest_dev_loss() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=11, **shape)
    model = transformers.LlamaForCausalLM(config)
    # what is learned first is right on dev, what comes after it is wrong
    right, wrong = ([1, 2, 3, 4, 5], 2), ([1, 2, 6, 7, 8], 2)
    steps = [[right]] * 20 + [[wrong]] * 60
    facts = tune.fit(model, steps, [right], 0.02, settings(tune_looks=4))
    losses = [look["dev"] for look in facts["curve"]]
    assert facts["kept"]["step"] == 20 and facts["kept"]["dev"] == min(losses) < losses[-1] - 0.5
    assert tune.mean_loss(model, [right]) == pytest.approx(facts["kept"]["dev"], abs=1e-6)
    assert facts["tokens"] == 400 and facts["response_tokens"] == 240


def test_losses_are_known_with_and_without_the_end_token() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=11, **shape)).eval()
    own = token_losses(model, padded([([1, 2, 3, 4, 5], 2)]))
    assert len(own) == 3
    for end, losses in ((5, own), (4, own[:-1])):
        expected, count = response_loss(model, padded([([1, 2, 3, 4, 5][:end], 2)]))
        assert len(losses) == count and losses.sum().item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_fine_tune_that_is_stopped_goes_on_with_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    own, kept = settings(tune_looks=4), tmp_path / ".kept"
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    steps = [[([1, 2, 3, 4 + index % 3, 5], 2)] for index in range(12)]
    dev = [([1, 2, 3, 4, 5], 2)]

    def model() -> Any:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=11, **shape))

    whole = model()
    expected = tune.fit(whole, steps, dev, 0.02, own)
    capsys.readouterr()
    keep, times = tune._keep, []

    def stop(*arguments: Any) -> None:
        keep(*arguments)
        times.append(1)
        if len(times) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tune, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        tune.fit(model(), steps, dev, 0.02, own, kept, "start")
    again = model()
    found = tune.fit(again, steps, dev, 0.02, own, kept, "start")
    assert "going on after step 6" in capsys.readouterr().out and len(times) == 4
    for facts in (found, expected):
        for look in [facts, facts["kept"], *facts["curve"]]:
            look["seconds"] = 0.0
    assert found == expected
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # another training, with another rate or from another start, does not go on from it, and says so
    for rate, start in ((0.01, "start"), (0.01, "other")):
        tune.fit(model(), steps, dev, rate, own, kept, start)
        said = capsys.readouterr().out
        assert "going on" not in said
        assert said.count(f"{kept} is of another start, other settings or samples: not used") == 1


def test_a_start_is_known_by_its_files(tmp_path: Path) -> None:
    """Not by a sum of its weights, which other orders of the same numbers share, and threads round differently."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")

    def start(name: str, weights: list[float], **others: str) -> str:
        directory = tmp_path / name
        directory.mkdir()
        safetensors.save_file({"weight": torch.tensor(weights)}, directory / "model.safetensors")
        for file, text in {"config_json": "{}", **others}.items():
            (directory / file.replace("_", ".")).write_text(text, "utf-8")
        return tune.weights_hash(directory)

    own = start("own", [1.0, 2.0])
    assert start("same", [1.0, 2.0], training_json='{"seconds": 3}') == own
    assert start("swapped", [2.0, 1.0]) != own
    assert start("configured", [1.0, 2.0], config_json='{"rope_theta": 1}') != own
    with pytest.raises(FileNotFoundError, match="has no weights"):
        tune.weights_hash(tmp_path)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("2 + 3 = 5\n#### 5", 1.0),
        ("#### 5 apples, 2 days", 1.0),
        ("So there are 1,000 and 5.", 1.0),
        ("5\n#### 6", 0.0),
        ("5 or 6", 0.0),
        ("none", 0.0),
        ("#### none", 0.0),
    ],
)
def test_worded_problems_are_judged_by_their_number(answer: str, right: float) -> None:
    assert task("held_out").is_right({"answer": "5"}, [answer]) == {"exact_match": right}


def test_tasks_have_the_runs_test_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = task("held_out")
    monkeypatch.delenv("SMOLLM2_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="SMOLLM2_DATA is not set"):
        held_out.load_problems(2)
    monkeypatch.setenv("SMOLLM2_DATA", str(tmp_path))
    math = [{"instruction": f"How many? {number}", "response": f"so {number}\n#### {number}"} for number in range(5)]
    text = [{"instruction": f"Goes on? {number}", "response": f"w{number} " * (2 + number)} for number in range(8)]
    for name, samples in (("math", math), ("text", text)):
        lines = "".join(json.dumps(one) + "\n" for one in samples)
        (tmp_path / f"{name}.test.jsonl").write_text(lines, "utf-8")
    assert held_out.load_problems(3)["test"]["answer"] == ["0", "1", "2"]
    choices = held_out.load_choices(3, 4)["test"]
    assert len(choices) == 3
    for number, one in enumerate(choices, 2):
        assert one["choices"][one["label"]] == " ".join([f"w{number}"] * 4)
        assert len(set(one["choices"])) == 4 and all(len(choice.split()) == 4 for choice in one["choices"])
    assert {one["label"] for one in held_out.load_choices(6, 2)["test"]} != {0}


def test_short_functions_can_be_passed_and_missed() -> None:
    module = task("short_functions")
    doc = next(one for one in module.load()["test"] if one["name"] == "add")
    good = module.program(doc, "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.")
    exec(compile(good, "good", "exec"), {})
    with pytest.raises(AssertionError):
        exec(compile(module.program(doc, "def add(a, b):\n    return a - b"), "bad", "exec"), {})
    for one in module.load()["test"]:
        assert one["description"].startswith(f"def {one['name']}(") and one["checks"]
        assert all(check.startswith(f"{one['name']}(") for check in one["checks"])


def test_the_table_knows_every_task_and_its_metric() -> None:
    class Loader(yaml.SafeLoader):
        """Leaves functions alone."""

    Loader.add_constructor("!function", lambda _, node: node.value)
    found = {}
    for path in TASKS_DIRECTORY.glob("*.yaml"):
        own = yaml.load(path.read_text("utf-8"), Loader)
        if "include" in own:
            own = yaml.load((TASKS_DIRECTORY / own["include"]).read_text("utf-8"), Loader) | own
        found[own["task"]] = own["metric_list"][0]["metric"]
        assert own["task"] == path.stem
    assert found == TASKS


def test_wrong_options_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_values(as_json(FULL), tmp_path / "settings.json")
    keep_values(as_json(FULL), tmp_path / "settings.json")
    with pytest.raises(UserError, match=r"made with other settings \(.*joint_steps.*\); remove it"):
        keep_values(as_json(FAST), tmp_path / "settings.json")
    assert Settings(**json.loads((tmp_path / "settings.json").read_text("utf-8"))) == FULL
    for into, message in (("none.md", "none.md must have one line <!-- smollm2:begin -->"), ("", "Is a directory")):
        arguments = ["run.py", "--fast", "--out", str(tmp_path), "--into", str(tmp_path / into)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            run.main()
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == "" and message in said.err
        assert said.err.startswith("megafuser: error: ") and said.err.count("\n") == 1
