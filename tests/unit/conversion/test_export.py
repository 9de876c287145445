"""What an export may write over: nothing that it reads."""

from pathlib import Path

import pytest

from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, content_hash, write_manifest
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.conversion.export import export_checkpoint
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard
from tests.cli.tools import tree
from tests.tiny_models import make_llama


@pytest.fixture(scope="module")
def warmup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warm-up checkpoint, as far as an export of its specialists goes, of the specialist `mcore/code`.

    Not to be changed by a test.
    """
    root = tmp_path_factory.mktemp("export")
    specialist = root / "mcore" / "code"
    manifest = import_specialist(make_llama(root / "model", num_hidden_layers=1), specialist)
    directory = root / "run" / "warmup" / "step_000002"
    directory.mkdir(parents=True)
    source = SpecialistSource(
        name="code",
        card=ArchitectureCard.from_dict(manifest.content["card"]),
        huggingface=specialist / "huggingface",
        checkpoint=specialist,
        content_hash=content_hash(manifest),
        origin={"name": "model", "repository": None, "revision": None},
    )
    write_manifest(
        directory, Manifest(FORMAT_VERSION, "warmup", "fp32", {"references": {"code": source.reference(directory)}})
    )
    return directory


@pytest.mark.parametrize("out", ["mcore/code", "mcore/code/huggingface", "mcore/code/export", "mcore", "run"])
@pytest.mark.parametrize("name", ["code", None])
def test_what_a_warmup_refers_to_is_an_input_too(warmup: Path, out: str, name: str | None) -> None:
    root = warmup.parents[2]
    before = tree(root)
    with pytest.raises(UserError, match="contain one another; choose another output"):
        export_checkpoint(warmup, root / out, specialist=name, overwrite=True)
    assert tree(root) == before


def test_a_specialist_of_a_warmup_is_the_converted_one(warmup: Path, tmp_path: Path) -> None:
    export_checkpoint(warmup, tmp_path / "out", specialist="code")
    model = warmup.parents[2] / "model"
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / "config.json").read_bytes()
