"""What a run keeps of its specialists, and where it finds them again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest
from megafuser.checkpoint.specialist_sources import converted_source, sources_from_checkpoint, sources_from_config
from megafuser.config.load import load_config
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.errors import UserError
from tests.fused_case import make_case, write_config
from tests.tiny_models import make_llama


def test_files_in_directories_are_kept_too(tmp_path: Path) -> None:
    values = make_case(tmp_path, train=1, valid=1)
    model = make_llama(tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    import_specialist(model, tmp_path / "specialist")
    values["specialists"][0]["checkpoint"] = str(tmp_path / "specialist")
    source = sources_from_config(load_config(write_config(tmp_path / "config.yaml", values)))[0]
    kept = source.tokenizer_files()
    assert kept["additional_chat_templates/tools.jinja"] == b"{{ messages }}"
    assert kept["config.json"] == (model / "config.json").read_bytes()


Make = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`text` is a specialist, and `other` another one."""
    root = tmp_path_factory.mktemp("converted")
    for seed, name in enumerate(("text", "other")):
        import_specialist(make_llama(root / f"{name}.hf", seed=seed), root / name, verify="none")
    return root


def _nothing(directory: Path, converted: Path) -> None:
    """No directory at all."""


def _foreign(directory: Path, converted: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "notes.txt").touch()


def _damaged(directory: Path, converted: Path) -> None:
    shutil.copytree(converted / "text", directory)
    (directory / "manifest.json").write_text("{")


def _other(directory: Path, converted: Path) -> None:
    shutil.copytree(converted / "other", directory)


def _same(directory: Path, converted: Path) -> None:
    shutil.copytree(converted / "text", directory)


@pytest.mark.parametrize(
    ("beside", "absolute", "says"),
    [
        (_same, _nothing, None),
        (_nothing, _same, None),
        (_foreign, _same, None),
        (_damaged, _same, None),
        (_other, _same, None),
        (_nothing, _nothing, r"specialist text is not at .*/named; put it back"),
        (_foreign, _nothing, r"beside is not a megafuser checkpoint"),
        (_damaged, _nothing, r"beside/manifest\.json is damaged"),
        (_other, _nothing, r"beside is no longer the specialist text"),
        (_foreign, _other, r"named is no longer the specialist text"),
    ],
)
def test_a_specialist_is_looked_for_beside_the_checkpoint_and_where_it_was(
    converted: Path, tmp_path: Path, beside: Make, absolute: Make, says: str | None
) -> None:
    places = {"beside": beside, "named": absolute}
    for name, make in places.items():
        make(tmp_path / name, converted)
    text = converted_source("text", converted / "text")
    (tmp_path / "run").mkdir()
    reference = text.reference(tmp_path / "run") | {"path": str(tmp_path / "named"), "relative_path": "../beside"}
    manifest = Manifest(FORMAT_VERSION, "warmup", "fp32", {"references": {"text": reference}})
    if says is None:
        (found,) = sources_from_checkpoint(tmp_path / "run", manifest)
        assert found.checkpoint.name == next(name for name, make in places.items() if make is _same)
        assert found.content_hash == text.content_hash
    else:
        with pytest.raises(UserError, match=says):
            sources_from_checkpoint(tmp_path / "run", manifest)
