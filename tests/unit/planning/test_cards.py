"""Architecture cards from converted checkpoints and from Hugging Face directories, and what is neither."""

import dataclasses
import json
from pathlib import Path

import pytest

from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.errors import UserError
from megafuser.planning.cards import read_cards
from tests.cli.test_plan import HF_13B, write_cards
from tests.unit.planning.architectures import ULTRAFUSER_13B
from tests.unit.planning.made_up_tasks import make_task


def config_of(**directories: Path) -> RunConfig:
    specialists = tuple(SpecialistConfig(name, str(path), "plain") for name, path in directories.items())
    return dataclasses.replace(make_task().config, specialists=specialists)


def test_both_kinds_side_by_side(tmp_path: Path) -> None:
    write_cards({"code": tmp_path / "code"}, ULTRAFUSER_13B)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps(HF_13B))
    cards, notes = read_cards(config_of(text=tmp_path / "text", code=tmp_path / "code"))
    assert list(cards) == ["text", "code"]
    assert cards["code"] == ULTRAFUSER_13B["code"]
    assert cards["text"].parameter_count() == ULTRAFUSER_13B["text"].parameter_count()
    assert len(notes) == 1 and notes[0].startswith("specialist text: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "convert it with tools/convert_hf_to_mcore.py"),
        ("", "is no Hugging Face configuration"),
        ("[]", "is no Hugging Face configuration"),
        (json.dumps(HF_13B | {"model_type": "gpt2"}), "config.json: "),
    ],
)
def test_what_is_no_specialist(tmp_path: Path, content: str | None, says: str) -> None:
    write_cards({"code": tmp_path / "code"}, ULTRAFUSER_13B)
    if content is not None:
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "config.json").write_text(content)
    with pytest.raises(UserError, match="specialist text: ") as error:
        read_cards(config_of(text=tmp_path / "text", code=tmp_path / "code"))
    assert says in str(error.value)
