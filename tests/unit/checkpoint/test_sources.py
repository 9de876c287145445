"""What a run keeps of its specialists."""

from pathlib import Path

from megafuser.checkpoint.sources import sources_from_config
from megafuser.config.load import load_config
from megafuser.conversion.hf_to_mcore import import_specialist
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
