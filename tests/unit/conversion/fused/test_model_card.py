"""The model card of an exported fusion: what it says comes from the checkpoint."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.config.load import load_config
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import TemplateConfig
from megafuser.conversion.fused.model_card import model_card
from megafuser.inference.prompts import Message, PromptEncoder
from tests.fused_case import write_config
from tests.tiny_models import SHARED_VOCABULARY, make_tokenizer
from tests.unit.specialist.small_card import CARD

REVISION = "0123456789abcdef0123456789abcdef01234567"


def counts(n: int) -> dict[str, Any]:
    numbers = {"samples": n, "tokens": 10 * n, "response_tokens": 3 * n}
    return numbers | {"domains": {"text": numbers}}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(
        write_config(
            tmp_path / "config.yaml",
            {
                "run_dir": str(tmp_path),
                "specialists": [
                    {"name": "text", "checkpoint": "a", "template": "ultralm"},
                    {"name": "code", "checkpoint": "b", "template": {"prompt": "Q: {{ instruction }}"}},
                ],
                "data": {"domains": {"text": {"train": ["t"], "valid": ["v"]}}},
            },
        ),
        [],
    )


@pytest.fixture
def sources() -> list[SpecialistSource]:
    hub = {"name": "org/text-13b", "repository": "org/text-13b", "revision": REVISION}
    local: dict[str, str | None] = {"name": "my-code-model", "repository": None, "revision": None}
    text = SpecialistSource("text", CARD, Path("a"), Path("a"), "cafe", hub)
    return [text, replace(text, name="code", content_hash="c0ffee", origin=local)]


def manifest(kind: str, **more: Any) -> Manifest:
    content = {"step": 7, "counts": counts(40), "shared_vocabulary": 320, "gate": {"hidden_size": 16}} | more
    return Manifest(format_version=FORMAT_VERSION, kind=kind, dtype="fp32", content=content)


def front_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_of_a_joint_checkpoint(config: RunConfig, sources: list[SpecialistSource]) -> None:
    more = {
        "warmup": {"step": 4, "counts": counts(11)},
        "earlier_joint": [{"step": 5, "counts": counts(22)}, {"step": 6, "counts": counts(33)}],
    }
    card = model_card(manifest("joint", **more), config, sources)
    front = front_of(card)
    assert front["library_name"] == "transformers" and front["base_model"] == ["org/text-13b"]
    assert "megafuser" in front["tags"] and "license" not in front
    assert f"| text | org/text-13b, revision `{REVISION}` | ultralm | " in card
    assert "| code | a directory `my-code-model`, content `c0ffee` | custom | " in card
    assert re.findall(r"^(.*): (\d) steps\.$", card, re.MULTILINE) == [
        ("Warm-up", "4"),
        ("Earlier joint training", "5"),
        ("Earlier joint training", "6"),
        ("Joint training", "7"),
    ]
    assert re.findall(r"^\| all \| (\d+) \| (\d+) \| (\d+) \|$", card, re.MULTILINE) == [
        (str(n), str(10 * n), str(3 * n)) for n in (11, 22, 33, 40)
    ]
    assert "Shared vocabulary: 320 ids" in card and "hidden size 16, shared by the specialists." in card
    assert "All weights were trained" in card and "2403.08281" in card and "converted to" not in card


def test_of_a_warmup(config: RunConfig, sources: list[SpecialistSource]) -> None:
    narrow = [sources[0], replace(sources[1], card=replace(CARD, hidden_size=16))]
    local = [replace(source, origin=sources[1].origin) for source in narrow]
    card = model_card(manifest("warmup"), config, local, torch.bfloat16)
    assert "base_model" not in front_of(card)
    assert "Only the gate was trained" in card and "converted to bfloat16" in card
    assert "behind a projection for each of them" in card
    assert re.findall(r": (\d) steps", card) == ["7"]


@pytest.mark.parametrize("template", ["hf", "plain"])
def test_its_code_is_python(config: RunConfig, sources: list[SpecialistSource], template: str) -> None:
    specialists = (replace(config.specialists[0], template=template), config.specialists[1])
    card = model_card(manifest("joint"), replace(config, specialists=specialists), sources)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    ast.parse(code[1])
    assert ("apply_chat_template" in code[1]) == (template == "hf")


@pytest.mark.parametrize("appends", [False, True])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("prompt", ["Q: {{ instruction }}\nA:", "<s>Q: {{ instruction }}\nA:"])
def test_its_code_makes_the_prompts_of_training(
    config: RunConfig,
    sources: list[SpecialistSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    appends: bool,
    chat: bool,
    prompt: str,
) -> None:
    """A template may write BOS itself, as chat templates do; the tokenizer puts it in front of any other text.

    Some tokenizers also append EOS, which belongs behind no prompt.
    """
    tokenizers = {name: make_tokenizer(tmp_path / "specialists" / name) for name in ("text", "code")}
    tokenizers["text"].chat_template = "{{ bos_token }}{{ messages[0].content }}\n"
    for name, tokenizer in tokenizers.items():
        if appends:
            special = [("<s>", 1), ("</s>", 2)]
            processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
            tokenizer.backend_tokenizer.post_processor = processor
        tokenizer.save_pretrained(tmp_path / "specialists" / name)
        again = AutoTokenizer.from_pretrained(tmp_path / "specialists" / name)
        assert (again("a").input_ids[-1] == 2) == appends
    templates = {"text": "hf" if chat else "plain", "code": TemplateConfig(prompt=prompt)}
    specialists = tuple(replace(one, template=templates[one.name]) for one in config.specialists)
    card = model_card(manifest("joint"), replace(config, specialists=specialists), sources)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    found: dict[str, list[int]] = {}

    def generate(input_ids: torch.Tensor, specialist_input_ids: dict[str, torch.Tensor], **_: Any) -> torch.Tensor:
        found.update({name: ids[0].tolist() for name, ids in specialist_input_ids.items()})
        return input_ids

    exported = [
        {"name": "text", "template": {"prompt": None if chat else "{{ instruction }}"}},
        {"name": "code", "template": {"prompt": prompt}},
    ]
    model = SimpleNamespace(config=SimpleNamespace(specialists=exported), generate=generate)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    exec(code[1].replace('DIR = "."', f"DIR = {str(tmp_path)!r}"), {})
    encoder = PromptEncoder(
        tokenizers,
        list(templates.values()),
        shared_vocabulary=SHARED_VOCABULARY,
        end_id=2,
        rows=[SHARED_VOCABULARY] * 2,
    )
    expected = encoder.chat([Message("user", "What is the sum of three and four?")])
    assert found == {name: list(ids) for name, ids in zip(tokenizers, expected, strict=True)}
    assert all(ids.count(1) == 1 and ids.count(2) == 0 for ids in found.values())
