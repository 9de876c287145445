"""A run's checkpoints as Hugging Face directories: bitwise, loadable without this package, refused where damaged."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import mistral_common
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.checkpoint.manifest import read_manifest
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.cli.main import main
from megafuser.config.specialists import TemplateConfig
from megafuser.conversion.export import export_checkpoint
from megafuser.conversion.fused import export, logits
from megafuser.conversion.fused.export import export_fused, prompt_template
from megafuser.conversion.fused.modeling_megafuser import MegafuserForCausalLM
from megafuser.data.templates import get_template
from megafuser.errors import UserError
from megafuser.families.config_json import card_from_hf_config
from tests.fused_case import SPECIALISTS, make_case, samples_of, write_config
from tests.reference import DenseFusion
from tests.tiny_models import SHARED_VOCABULARY, make_model

UNEQUAL: dict[str, dict[str, Any]] = {
    "small": {"template": "chatml", "hidden_size": 16, "head_dim": 8, "num_hidden_layers": 2},
    "tied.v2": {"template": "ultralm", "extra_tokens": 5, "num_hidden_layers": 1, "tie_word_embeddings": True},
}


@dataclass(frozen=True)
class Run:
    """Both stages of a run, two steps each, and where everything is."""

    root: Path
    names: list[str]

    def checkpoint(self, stage: str) -> Path:
        return self.root / "run" / stage / "step_000002"

    def export(self, stage: str, out: Path, verify: str = "weights", dtype: torch.dtype | None = None) -> list[str]:
        """Exports into a new directory; gives what was reported."""
        checkpoint = self.checkpoint(stage)
        lines: list[str] = []
        out.mkdir()
        export_fused(checkpoint, read_manifest(checkpoint), out, dtype=dtype, verify=verify, report=lines.append)
        return lines


def make_run(root: Path, specialists: dict[str, dict[str, Any]]) -> Run:
    values = make_case(root, train=4, valid=1, specialists=specialists)
    stage = {"steps": 2, "samples_per_domain": 1, "lr": 3e-2}
    values |= {"warmup": stage, "joint": stage, "evaluation": {"interval": 2, "samples_per_domain": 1}}
    config = write_config(root / "config.yaml", values)
    for name in ("warmup", "joint"):
        assert main([name, "--config", str(config)]) == 0
    return Run(root, list(specialists))


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("equal"), SPECIALISTS)


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("unequal"), UNEQUAL)


@pytest.fixture(scope="module")
def joint(equal: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The joint checkpoint of `equal`, exported; not to be changed by a test."""
    out = tmp_path_factory.mktemp("joint") / "fused"
    equal.export("joint", out)
    return out


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in directory.glob("*.safetensors") for key, value in load_file(path).items()}


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [key for key, value in first.items() if not torch.equal(value, second[key])]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the code that transformers copies out of the user's cache."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("stage", ["warmup", "joint"])
@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_logits_are_those_of_megatron_core(
    request: pytest.FixtureRequest, stage: str, sizes: str, tmp_path: Path, modules: None
) -> None:
    run: Run = request.getfixturevalue(sizes)
    weights, logits = run.export(stage, tmp_path / "fused", verify="logits")
    assert re.fullmatch(r"weights: all \d+ tensors are equal bit by bit", weights)
    assert logits.startswith("logits: the largest difference between the fused model's and Megatron-Core's in fp32 is ")


def test_a_warmup_brings_the_specialists_along_as_they_were(unequal: Run, tmp_path: Path) -> None:
    unequal.export("warmup", tmp_path / "fused")
    for name in unequal.names:
        own, original = tmp_path / "fused" / "specialists" / name, unequal.root / "hf" / name
        assert difference(tensors(own), tensors(original)) == []
        for path in original.iterdir():
            if path.suffix != ".safetensors":
                assert (own / path.name).read_bytes() == path.read_bytes()
    gate = load_file(tmp_path / "fused" / "gate.safetensors")
    projections = {f"project.{name}.weight" for name in unequal.names}
    assert gate.keys() == projections | {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert gate["fc1.weight"].shape == (16, 32) and gate["project.small.weight"].shape == (32, 16)


def test_a_joint_checkpoint_gives_what_it_holds(equal: Run, joint: Path) -> None:
    gate = load_file(joint / "gate.safetensors")
    assert gate.keys() == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    with StreamedReader(equal.checkpoint("joint") / "weights") as stored:
        for key, value in gate.items():
            assert torch.equal(stored.rows(f"gate.{key}", None, 0, len(value)), value)
        for name in equal.names:
            own = tensors(joint / "specialists" / name)
            assert set(difference(own, tensors(equal.root / "hf" / name))) == set(own)  # all were trained
            for key, source in (
                ("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
                ("output_layer.weight", "lm_head.weight"),
                ("decoder.final_layernorm.weight", "model.norm.weight"),
            ):
                rows = len(own[source])  # without padding
                assert torch.equal(stored.rows(f"specialists.{name}.{key}", None, 0, rows), own[source])
    for name in equal.names:
        model = AutoModelForCausalLM.from_pretrained(joint / "specialists" / name)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert len(AutoTokenizer.from_pretrained(joint / "specialists" / name)) == model.config.vocab_size


def test_one_specialist_of_a_joint_checkpoint(unequal: Run, tmp_path: Path) -> None:
    whole, alone, lines = tmp_path / "whole", tmp_path / "alone", list[str]()
    unequal.export("joint", whole)
    export_checkpoint(
        unequal.root / "run", alone, specialist="tied.v2", dtype="keep", verify="logits", report=lines.append
    )
    assert lines[1].startswith("logits: ")
    names = {path.name for path in alone.iterdir()}
    assert names == {path.name for path in (whole / "specialists" / "tied.v2").iterdir()}
    assert all((alone / name).read_bytes() == (whole / "specialists/tied.v2" / name).read_bytes() for name in names)


def test_losses_are_those_of_the_dense_reference(equal: Run, joint: Path) -> None:
    gate = load_file(joint / "gate.safetensors")
    dense = DenseFusion({name: joint / "specialists" / name for name in equal.names}, gate, SHARED_VOCABULARY)
    sample = samples_of("code", 1)[0]
    fused = MegafuserForCausalLM.from_pretrained(joint)
    response = [*dense.tokenizers["text"](sample["response"], add_special_tokens=False).input_ids, 2]
    ids = {}
    for specialist in fused.config.specialists:
        prompt = jinja2.Template(specialist["template"]["prompt"], keep_trailing_newline=True)
        text = prompt.render(instruction=sample["instruction"], system="")
        own = AutoTokenizer.from_pretrained(joint / "specialists" / specialist["name"])(text).input_ids
        ids[specialist["name"]] = torch.tensor([own + response])
    length = len(response)
    output = fused(specialist_input_ids=ids)
    logits = output.logits[0, -length - 1 : -1]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="none")
    with torch.no_grad():
        expected = dense.sample(sample)
    assert torch.allclose(losses.double(), expected["fused"], atol=1e-4)
    assert torch.allclose(output.gate[0, -length - 1 : -1].double(), expected["weights"], atol=1e-5)


def test_the_directory_says_what_it_is(equal: Run, joint: Path) -> None:
    config = json.loads((joint / "config.json").read_text())
    assert config["model_type"] == "megafuser" and config["architectures"] == ["MegafuserForCausalLM"]
    assert config["vocab_size"] == SHARED_VOCABULARY and config["gate_hidden_size"] == 16
    assert config["max_position_embeddings"] == 256 and config["dtype"] == "float32"
    assert [specialist["name"] for specialist in config["specialists"]] == equal.names
    assert [specialist["template"]["name"] for specialist in config["specialists"]] == [
        "ultralm",
        "codellama",
        "alpaca",
    ]
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert json.loads((joint / "generation_config.json").read_text()) == tokens
    assert {path.name for path in joint.iterdir()} == {
        "README.md",
        "config.json",
        "gate.safetensors",
        "generation_config.json",
        "modeling_megafuser.py",
        "specialists",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer, first = (AutoTokenizer.from_pretrained(path) for path in (joint, joint / "specialists" / "text"))
    assert type(tokenizer) is type(first) and tokenizer.get_vocab() == first.get_vocab()


def test_the_code_of_the_card_runs_without_this_package(equal: Run, joint: Path, tmp_path: Path) -> None:
    """In a fresh interpreter, elsewhere, with caches of its own; its text is that of greedy decoding here."""
    code = re.search(r"```python\n(.*?)```", (joint / "README.md").read_text(), re.DOTALL)
    assert code is not None and 'DIR = "."' in code[1]
    script = "import sys\nsys.modules['megafuser'] = None\n" + code[1].replace('DIR = "."', f"DIR = {str(joint)!r}")
    script += "print('CODE:', type(model).__module__)\nprint('IDS:', output[0].tolist())\n"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-I", "-c", script]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "CODE: transformers_modules." in done.stdout
    assert list((tmp_path / "home").rglob("modeling_megafuser.py"))

    fused = MegafuserForCausalLM.from_pretrained(joint)
    prompts = {}
    for name, template in {name: SPECIALISTS[name]["template"] for name in equal.names}.items():
        text = get_template(template, None).turn("What is the sum of three and four?", None, True)
        tokenizer = AutoTokenizer.from_pretrained(joint / "specialists" / name)
        prompts[name] = tokenizer(text, return_tensors="pt").input_ids
    output = fused.generate(input_ids=prompts["text"], specialist_input_ids=prompts, max_new_tokens=64)
    assert f"IDS: {output[0].tolist()}" in done.stdout


def test_weights_may_be_rounded(unequal: Run, tmp_path: Path, modules: None) -> None:
    lines = unequal.export("joint", tmp_path / "fused", verify="logits", dtype=torch.bfloat16)
    assert lines[0].endswith("are equal bit by bit, after rounding to bfloat16")
    assert json.loads((tmp_path / "fused/config.json").read_text())["dtype"] == "bfloat16"
    found = {value.dtype for value in tensors(tmp_path / "fused").values()}
    for name in unequal.names:
        found |= {value.dtype for value in tensors(tmp_path / "fused/specialists" / name).values()}
    assert found == {torch.bfloat16}


def test_a_gate_that_the_dtype_cannot_hold_is_refused(
    unequal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamedReader, "rows", lambda self, key, layer, start, stop: torch.full(self.shapes[key], 1e5))
    with pytest.raises(UserError, match=r"gate\.fc1\.weight has weights up to 1e\+05, which float16 cannot hold"):
        unequal.export("joint", tmp_path / "fused", dtype=torch.float16)


def test_a_difference_is_an_error(unequal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: None) -> None:
    real = logits._exported_logits
    with monkeypatch.context() as patch:
        patch.setattr(logits, "_exported_logits", lambda *given: [z + 1e-3 for z in real(*given)])
        with pytest.raises(UserError, match=r"differ by 0\.001.*nothing was kept"):
            unequal.export("joint", tmp_path / "logits", verify="logits")
    save = save_file

    def lose_a_bit(values: dict[str, torch.Tensor], *rest: Any, **named: Any) -> None:
        save(values | {"fc2.bias": values["fc2.bias"].nextafter(torch.tensor(9.0))}, *rest, **named)

    monkeypatch.setattr(export, "save_file", lose_a_bit)
    with pytest.raises(UserError, match=r"gate\.safetensors was not written as it was read"):
        unequal.export("joint", tmp_path / "gate")


def test_damaged_and_missing_inputs_are_refused(unequal: Run, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(unequal.root / "run", root / "run")
    shutil.copytree(unequal.root / "mcore", root / "mcore")
    run = Run(root, unequal.names)
    specialist = root / "mcore" / "small"
    weights = next((specialist / "weights").glob("*.distcp"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"damaged checkpoint .*small .*distcp"):
        run.export("warmup", tmp_path / "a")
    weights.write_bytes(content)
    config = run.checkpoint("joint") / "config.yaml"
    config.write_text(config.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"damaged checkpoint .*joint.* \(damaged: config.yaml\)"):
        run.export("joint", tmp_path / "b")
    (unequal.root / "mcore").rename(unequal.root / "away")
    try:
        shutil.rmtree(specialist)
        with pytest.raises(UserError, match="specialist small is not at"):
            run.export("warmup", tmp_path / "c")
        shutil.copytree(root / "mcore" / "tied.v2", specialist)
        with pytest.raises(UserError, match="no longer the specialist small"):
            run.export("warmup", tmp_path / "d")
    finally:
        (unequal.root / "away").rename(unequal.root / "mcore")


@pytest.mark.parametrize("template", ["ultralm", "codellama", "alpaca", "chatml", "plain"])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_templates_as_jinja_write_the_same_prompts(template: str, system: str) -> None:
    text = prompt_template(template)
    assert text is not None
    rendered = jinja2.Template(text, keep_trailing_newline=True).render(instruction="2 {{ 3 }} %}", system=system)
    assert rendered == get_template(template, None).turn("2 {{ 3 }} %}", system or None, True)


def test_other_templates_are_taken_as_they_are() -> None:
    assert prompt_template("hf") is None
    assert prompt_template(TemplateConfig(prompt="Q: {{ instruction }}\n")) == "Q: {{ instruction }}\n"


def _bare_sentencepiece(directory: Path) -> Path:
    make_model(directory, "llama")
    for path in directory.glob("tokenizer*"):
        path.unlink()
    shutil.copyfile(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", directory / "tokenizer.model")
    return directory


def _known_by_the_type_of_its_model(directory: Path) -> Path:
    make_model(directory, "qwen2")
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return directory


@pytest.mark.parametrize("make", [_bare_sentencepiece, _known_by_the_type_of_its_model])
def test_the_first_tokenizer_stays_its_own_kind(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """AutoTokenizer knows some by the model's type alone, which the fused directory does not have."""
    own, out = make(tmp_path / "own"), tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "megafuser"}')
    tokenizer = AutoTokenizer.from_pretrained(own)
    card = card_from_hf_config(json.loads((own / "config.json").read_text()))
    export._write_tokenizer(out, SpecialistSource("text", card, own, own, "", {}), tokenizer)
    again = AutoTokenizer.from_pretrained(out)
    assert type(again) is type(tokenizer)
    for text in ("def f(x):\n    return x ** 2", "Größe 3 四", " seven"):
        assert again(text).input_ids == tokenizer(text).input_ids
    files = {path.name for path in own.glob("tokenizer*")}
    assert files | {"config.json"} == {path.name for path in out.iterdir()}
