"""Reading a configuration with overrides, what is refused and how it is told, and that YAML comes back as it was."""

import re
from operator import attrgetter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from megafuser.config.load import WITHOUT_EFFECT_ON_RESULTS, differences, load_config, to_yaml
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig, TemplateConfig
from megafuser.errors import UserError

MINIMAL = """\
run_dir: runs/x
specialists:
  - {name: text, checkpoint: checkpoints/text, template: ultralm}
  - {name: code, checkpoint: checkpoints/code, template: codellama}
data:
  domains:
    text: {train: [t.jsonl], valid: [v.jsonl]}
"""

FULL = """\
run_dir: runs/ultrafuser-13b
seed: 7
specialists:
  - {name: text, checkpoint: checkpoints/ultralm-13b,   template: ultralm}
  - {name: code, checkpoint: checkpoints/codellama-13b, template: {prompt: "Q: {{ instruction }}"}}
gate: {hidden_size: 64}
data:
  sequence_length: 2048
  balanced: false
  end_token: "<|im_end|>"
  domains:
    text: {train: [data/text.train.jsonl], valid: [data/text.valid.jsonl]}
parallel: {tensor: 8, pipeline: 2, sequence: true}
precision: {dtype: bf16, fp8: delayed}
device: cuda
backend: transformer_engine
optimizer: {distributed: false, weight_decay: 0.1, betas: [0.8, 0.99], eps: 1e-6, clip_grad: 0.5}
warmup: {steps: 40,  samples_per_domain: 6, lr: 2e-5, min_lr: 1e-6, lr_warmup_steps: 3}
joint:  {steps: 50, samples_per_domain: 3, lr: 1, min_lr: 0, lr_warmup_steps: 4, init_from: elsewhere}
evaluation: {interval: 25, samples_per_domain: 26}
checkpoint: {interval: 5, keep: 1, async: false}
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(text, "utf-8")
    return path


def refusal(directory: Path, text: str = MINIMAL, *overrides: str) -> str:
    """The message of the error that this configuration raises: a single line that names the file or the override."""
    path = write(directory, text)
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or any(f"override {override!r}" in message for override in overrides)
    return message


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.seed, config.gate.hidden_size, config.data.sequence_length, config.data.balanced) == (
        1234,
        512,
        4096,
        True,
    )
    assert (config.warmup.steps, config.warmup.samples_per_domain) == (400, 64)
    assert (config.joint.steps, config.joint.samples_per_domain, config.joint.init_from) == (5000, 32, None)
    assert config.optimizer.betas == (0.9, 0.95)
    assert (config.checkpoint.interval, config.checkpoint.keep, config.checkpoint.async_) == (500, 3, True)
    assert (config.precision.dtype, config.precision.fp8, config.device, config.backend) == (
        "bf16",
        None,
        "auto",
        "auto",
    )


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, FULL))
    assert config.specialists[0] == SpecialistConfig("text", "checkpoints/ultralm-13b", "ultralm")
    assert config.specialists[1].template == TemplateConfig("Q: {{ instruction }}")
    assert config.data.domains["text"].train == ("data/text.train.jsonl",)
    assert config.optimizer.eps == 1e-6
    assert config.warmup.lr == 2e-5
    assert isinstance(config.joint.lr, float)
    assert config.checkpoint.async_ is False
    assert config.data.end_token == "<|im_end|>"


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_round_trip(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, text))
    assert load_config(write(tmp_path, to_yaml(config))) == config
    assert "async_" not in to_yaml(config)


@pytest.mark.parametrize(
    "prompt",
    ["${x} \\${y} \\\\${z}", "1e5", "no", "null", "12", "a: b\n\n  c ", "é\t#", "'\"", "{{ instruction }}", "$"],
)
def test_round_trip_of_texts_that_yaml_reads_otherwise(tmp_path: Path, prompt: str) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    odd = RunConfig(
        run_dir=config.run_dir,
        specialists=(config.specialists[0], SpecialistConfig("1e5", prompt, TemplateConfig(prompt))),
        data=config.data.__class__(domains={"no": config.data.domains["text"], "010": config.data.domains["text"]}),
    )
    assert load_config(write(tmp_path, to_yaml(odd))) == odd


def test_overrides(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, FULL),
        [
            "warmup.steps=20",
            "optimizer.betas=[0.9,0.999]",
            "optimizer.betas.0=0.7",
            "specialists.0.template=plain",
            "specialists.0.checkpoint=a=b",
            "specialists.1.template.prompt=hello",
            "precision.fp8=null",
            "joint.lr=3e-4",
            "data.domains.math={train: [a.jsonl], valid: [b.jsonl]}",
            "checkpoint.async=true",
            "warmup.steps=21",
        ],
    )
    assert config.warmup.steps == 21
    assert config.optimizer.betas == (0.7, 0.999)
    assert config.specialists[0] == SpecialistConfig("text", "a=b", "plain")
    assert config.specialists[1].template == TemplateConfig("hello")
    assert config.precision.fp8 is None
    assert config.joint.lr == 3e-4
    assert config.data.domains["math"].valid == ("b.jsonl",)
    assert config.checkpoint.async_ is True


def test_an_override_replaces_a_template_by_one_of_another_kind(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL), ["specialists.0.template.prompt=hi"])
    assert config.specialists[0].template == TemplateConfig("hi")


def test_environment_variables_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAFUSER_TEST_SCRATCH", "/scratch/me")
    assert load_config(write(tmp_path, MINIMAL), ["run_dir=${oc.env:MEGAFUSER_TEST_SCRATCH}/run"]).run_dir == (
        "/scratch/me/run"
    )


def test_an_override_does_not_reach_through_an_interpolation(tmp_path: Path) -> None:
    """`warmup.lr` would change as well, and nobody would know."""
    text = MINIMAL + "warmup: {lr: 1e-3}\njoint: ${warmup}\n"
    assert "joint refers to another key, which would change too" in refusal(tmp_path, text, "joint.lr=1e-5")


def test_an_override_below_what_cannot_be_resolved(tmp_path: Path) -> None:
    text = MINIMAL.replace("[t.jsonl]", "['${nowhere}']")
    assert "nowhere" in refusal(tmp_path, text, "data.domains.text.train.0.path=x")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("foo", "is not of the form dotted.key=value"),
        ("warmup.step", "the nearest valid one is 'warmup.steps'"),
        ("=3", "is not of the form dotted.key=value"),
        ("wramup.steps=3", "wramup.steps: unknown key; the nearest valid one is 'warmup'"),
        ("warmup.step=3", "warmup.step: unknown key; the nearest valid one is 'warmup.steps'"),
        ("xyz=3", "xyz: unknown key; valid are run_dir, specialists, data,"),
        ("warmup.init_from=a", "warmup.init_from: unknown key; valid are warmup.steps,"),
        ("warmup.steps.x=3", "warmup.steps is a value"),
        ("data.domains.text.trainn=[a]", "the nearest valid one is 'data.domains.text.train'"),
        ("specialists.2.template=plain", "specialists has 2 items, the last is 1"),
        ("specialists.text.template=plain", "specialists is a list"),
        ("specialists.².template=plain", "specialists is a list"),
        ("specialists.0.templatte=plain", "the nearest valid one is 'specialists.0.template'"),
        ("checkpoint.async_=true", "the nearest valid one is 'checkpoint.async'"),
        ("optimizer.betas=[0.9", "no YAML"),
        ("run_dir=${nowhere}", "nowhere"),
        ("run_dir=${", "${"),
        ("run_dir=???", "run_dir"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, says: str) -> None:
    write(tmp_path, MINIMAL)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        load_config(tmp_path / "config.yaml", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ('warmup.steps="12"', "warmup.steps: must be an integer, not the text '12'"),
        ("warmup.steps=1.5", "warmup.steps: must be an integer, not 1.5"),
        ("warmup.steps=1.0", "warmup.steps: must be an integer"),
        ("warmup.steps=true", "warmup.steps: must be an integer, not true"),
        ("warmup.steps=null", "warmup.steps: must be an integer, not null"),
        ('joint.lr="1e-5"', "joint.lr: must be a number, not the text '1e-5'"),
        ("joint.lr=true", "joint.lr: must be a number, not true"),
        ("run_dir=5", "run_dir: must be text, not 5"),
        ("run_dir=", "run_dir: must be text, not null"),
        ("data.balanced=1", "data.balanced: must be true or false, not 1"),
        ("gate=5", "gate: must be a mapping, not 5"),
        ("parallel=[1]", "parallel: must be a mapping, not a list"),
        ("specialists=text", "specialists: must be a list, not the text 'text'"),
        ("data.domains=[a]", "data.domains: must be a mapping, not a list"),
        ("data.domains.text.train=a.jsonl", "data.domains.text.train: must be a list, not the text 'a.jsonl'"),
        ("data.domains={1: {train: [a], valid: [b]}}", "data.domains: the key 1 is not text; put it in quotes"),
        ("data.end_token=!!binary aGk=", "data.end_token: must be text"),
        ("specialists.0.template=5", "specialists.0.template: must be text, not 5"),
        ("specialists.0.template={}", "specialists.0.template.prompt: is required and missing"),
        ("specialists.0.template={prompd: a}", "the nearest valid one is 'specialists.0.template.prompt'"),
        ("specialists.0.template={prompt: 5}", "specialists.0.template.prompt: must be text, not 5"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: is required and missing"),
        ("optimizer.betas=[0.9,0.9,0.9]", "optimizer.betas: must have at most 2 items, not 3"),
        ("device=gpu", "device: must be 'auto', 'cuda' or 'cpu', not the text 'gpu'"),
        ("precision.fp8=none", "precision.fp8: must be 'delayed', 'tensorwise' or 'blockwise', or null"),
        ("precision.dtype=fp16", "precision.dtype: must be 'fp32' or 'bf16', not the text 'fp16'"),
    ],
)
def test_wrong_types(tmp_path: Path, override: str, says: str) -> None:
    assert says in refusal(tmp_path, MINIMAL, override)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n- b\n", "is a list"),
        ("just text", "unknown key"),
        ("5", "configuration"),
        ("a:\n\t- b\n", "line 2"),
        ("a: [1\n", "line"),
        (MINIMAL + "run_dir: other\n", "duplicate key run_dir"),
        (MINIMAL.replace("run_dir", "rundir"), "rundir: unknown key; the nearest valid one is 'run_dir'"),
        (MINIMAL.replace("run_dir: runs/x\n", ""), "run_dir: is required and missing"),
        (MINIMAL.split("specialists")[0], "specialists: is required and missing"),
        (MINIMAL.replace("name: text, ", ""), "specialists.0.name: is required and missing"),
        (MINIMAL.replace("train: [t.jsonl], ", ""), "data.domains.text.train: is required and missing"),
        (MINIMAL + "warmup: {stesp: 3}\n", "warmup.stesp: unknown key; the nearest valid one is 'warmup.steps'"),
        (MINIMAL + "lr: 3\n", "lr: unknown key; valid are run_dir,"),
        (MINIMAL + "5: 3\n", "the key 5 is not text"),
        (MINIMAL + "warmup: {steps: -1}\n", "warmup.steps: must be at least 1, not -1"),
        (MINIMAL + "device: ${nowhere}\n", "device: Interpolation key 'nowhere' not found"),
        (MINIMAL + "device: ???\n", "device"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(tmp_path, text)


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, MINIMAL + "warmup: {lr: 1e-3}\n")).warmup.lr == 1e-3


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: \xe9t\xe9\n")
    with pytest.raises(UserError, match="UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_nothing_is_imported_from_the_file(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    refusal(tmp_path, MINIMAL + f"gate: !!python/object/apply:pathlib.Path.touch [{marker}]\n")
    assert not marker.exists()


def test_differences(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    config = load_config(path)
    assert differences(config, load_config(path)) == []
    other = load_config(
        path,
        [
            "optimizer.clip_grad=0.5",
            "optimizer.betas=[0.9,0.99]",
            "checkpoint.async=false",
            "specialists.1.template=plain",
            "data.domains.math={train: [a], valid: [b]}",
        ],
    )
    assert sorted(differences(config, other)) == [
        "checkpoint.async: true → false",
        "data.domains.math.lengths.max_response_tokens: absent → null",
        "data.domains.math.lengths.max_tokens: absent → null",
        "data.domains.math.lengths.min_response_tokens: absent → 0",
        "data.domains.math.lengths.min_tokens: absent → 0",
        'data.domains.math.train: absent → ["a"]',
        'data.domains.math.valid: absent → ["b"]',
        "optimizer.betas: [0.9, 0.95] → [0.9, 0.99]",
        "optimizer.clip_grad: 1.0 → 0.5",
        'specialists.1.template: "codellama" → "plain"',
    ]


def test_the_yaml_is_ordinary_yaml(tmp_path: Path) -> None:
    text = to_yaml(load_config(write(tmp_path, FULL)))
    assert OmegaConf.create(text)["optimizer"]["eps"] == 1e-6


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["joint.groups.cod.lr=1e-5"],
            "joint.groups.cod: is not part of the model; the nearest valid one is 'joint.groups.code'",
        ),
        (["joint.groups.code.rate=1e-5"], "joint.groups.code.rate: unknown key; valid are joint.groups.code.lr,"),
        (["joint.groups.code.lr=fast"], "joint.groups.code.lr: must be a number, not the text 'fast'"),
        (["joint.groups.code.lr=-1"], "joint.groups.code.lr: must be at least 0.0, not -1"),
        (["joint.groups.code={}"], "joint.groups.code.lr: is missing, and so is weight_decay"),
        (["joint.frozen=[txt]"], "joint.frozen.0: 'txt' is not a specialist; the nearest valid one is 'text'"),
        (["gate.init=zeros"], "gate.init: must be 'zero' or 'random', not the text 'zeros'"),
        (["gate.temperature=0"], "gate.temperature: must be above 0, not 0"),
        (["evaluation.patience=soon"], "evaluation.patience: must be an integer"),
    ],
)
def test_training_knobs_say_what_is_wrong(tmp_path: Path, overrides: list[str], says: str) -> None:
    assert says in refusal(tmp_path, MINIMAL, *overrides)


def test_training_knobs_come_back_from_their_yaml(tmp_path: Path) -> None:
    overrides = [
        "joint.groups={gate: {lr: 0.01}, code: {lr: 1e-6, weight_decay: 0.1}}",
        "joint.frozen=[text]",
        "joint.load_balance=0.01",
        "gate.temperature=2",
        "evaluation={interval: 10, patience: 3}",
        "checkpoint={interval: 20, keep_best: true}",
    ]
    config = load_config(write(tmp_path, MINIMAL), overrides)
    assert config.joint.groups["code"].weight_decay == 0.1 and config.joint.groups["gate"].weight_decay is None
    (tmp_path / "again").mkdir()
    again = load_config(write(tmp_path / "again", to_yaml(config)))
    assert again == config and differences(config, again) == []
    plain = load_config(write(tmp_path, MINIMAL), overrides[1:])
    assert any(line.startswith("joint.groups.code.lr: ") for line in differences(plain, config))


def test_what_has_no_effect_on_results_are_keys_of_the_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    for key in WITHOUT_EFFECT_ON_RESULTS:
        attrgetter(key)(config)
