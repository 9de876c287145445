"""What travels with a model: which files, byte for byte, and that its tokenizer is the same one afterwards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mistral_common
import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megafuser.conversion.carried_files import carried_files, copy_carried_files, is_carried
from megafuser.errors import UserError
from tests.tiny_models import make_tokenizer

SENTENCEPIECE_MODEL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
TEXTS = (
    "Hello world",
    "",
    "a",
    " ",
    "   three in front,  two  between, one behind ",
    "\n\nlines\r\n\tand tabs\t",
    "def f(x):\n    return x ** 2  # naïve\n",
    "日本語のテキスト, Ελληνικά, кириллица, עברית",
    "emoji 🤖👩‍👩‍👧 and 𐍈, which only bytes can spell; \u00a0\u2028\x00\x7f",
    "ﬁ ½ Å Å ① \u0301",
    "▁the mark▁ itself",
    "0123456789 3.14159 1,000,000",
    "x" * 200,
)


def _names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def _carry(directory: Path, target: Path) -> Path:
    target.mkdir()
    copy_carried_files(directory, target)
    return target


CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "qwen.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/rag.jinja",
    "preprocessor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "License.md",
    "NOTICE",
    "Notice.txt",
    "USE_POLICY.md",
    "README.md",
)
LEFT = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.gguf",
    "consolidated.00.pth",
    "tokenization_custom.py",
    "license.py",
    ".gitattributes",
    ".hidden.json",
    "onnx/config.json",
    "original/tokenizer.model",
    "additional_chat_templates/code.py",
    "additional_chat_templates/deep/er.jinja",
    "picture.png",
)


def test_which_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in (*CARRIED, *LEFT):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode() + b"\r\n\xff\x00")
    assert {path.relative_to(source).as_posix() for path in carried_files(source)} == set(CARRIED)
    target = _carry(source, tmp_path / "target")
    assert _names(target) == set(CARRIED)
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in CARRIED)


def test_nothing_large(tmp_path: Path) -> None:
    with (tmp_path / "optimizer.json").open("wb") as file:
        file.truncate((256 << 20) + 1)
    (tmp_path / "config.json").touch()
    assert [path.name for path in carried_files(tmp_path)] == ["config.json"]
    assert is_carried("a.json", 256 << 20) and not is_carried("a.json", (256 << 20) + 1)


def test_links_are_followed(tmp_path: Path) -> None:
    """As in the hub's cache, where each file is a link to a content's hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot/additional_chat_templates").mkdir(parents=True)
    for number, name in enumerate(("tokenizer.json", "additional_chat_templates/rag.jinja")):
        (tmp_path / f"blobs/{number}").write_bytes(name.encode())
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / f"blobs/{number}")
    target = _carry(tmp_path / "snapshot", tmp_path / "target")
    assert _names(target) == {"tokenizer.json", "additional_chat_templates/rag.jinja"}
    assert all((target / name).read_text() == name and not (target / name).is_symlink() for name in _names(target))
    (tmp_path / "blobs/0").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json is a link to a file that is gone"):
        carried_files(tmp_path / "snapshot")


def _write(directory: Path, **files: object) -> None:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


def _bare_sentencepiece(directory: Path) -> None:
    shutil.copy(SENTENCEPIECE_MODEL, directory / "tokenizer.model")
    _write(directory, config={"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


def _sentencepiece_with_added_tokens(directory: Path) -> None:
    """As fine-tuned Llamas were saved: WizardMath and UltraLM have these files."""
    _bare_sentencepiece(directory)
    _write(
        directory,
        added_tokens={"[PAD]": 32000, "<|turn|>": 32001},
        special_tokens_map={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"},
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 2048},
    )


def _sentencepiece_with_a_decoder_of_added_tokens(directory: Path) -> None:
    """As later ones are saved, in tokenizer_config.json alone."""
    _bare_sentencepiece(directory)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    _write(
        directory,
        tokenizer_config={
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "added_tokens_decoder": {"32000": {"content": "[PAD]", **flags}, "32001": {"content": "<|turn|>", **flags}},
            "chat_template": "{% for message in messages %}<|turn|>{{ message.content }}{% endfor %}",
        },
    )


def _fast(directory: Path) -> None:
    make_tokenizer(directory, extra_tokens=3)
    (directory / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    _write(directory, config={"model_type": "llama"})


def _vocabulary_and_merges(directory: Path) -> None:
    """As GPT-2's and the first Qwen2's: the model of the fast tokenizer in two files."""
    make_tokenizer(directory)
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    for path in directory.iterdir():
        path.unlink()
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    vocabulary = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    _write(directory, vocab=vocabulary, config={"model_type": "qwen2"})
    _write(directory, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"})


def _load(directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


@pytest.mark.parametrize(
    "make",
    [
        _fast,
        _bare_sentencepiece,
        _sentencepiece_with_added_tokens,
        _sentencepiece_with_a_decoder_of_added_tokens,
        _vocabulary_and_merges,
    ],
)
def test_the_tokenizer_is_the_same_from_the_carried_files(make: Callable[[Path], None], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make(source)
    before = _names(source)
    target = _carry(source, tmp_path / "target")
    assert _names(target) == before
    original, carried = _load(source), _load(target)
    texts = [*TEXTS, "[PAD]<|turn|> in a <extra_1> text</s>"]
    for special in (True, False):
        expected = [original(text, add_special_tokens=special)["input_ids"] for text in texts]
        assert [carried(text, add_special_tokens=special)["input_ids"] for text in texts] == expected
    assert any(expected)
    assert carried.get_vocab() == original.get_vocab() and len(carried) == len(original)
    assert carried.special_tokens_map == original.special_tokens_map
    assert carried.chat_template == original.chat_template
    assert _names(source) == before, "reading must not add files"


def test_added_tokens_arrive(tmp_path: Path) -> None:
    for number, make in enumerate((_sentencepiece_with_added_tokens, _sentencepiece_with_a_decoder_of_added_tokens)):
        source = tmp_path / f"source{number}"
        source.mkdir()
        make(source)
        tokenizer = _load(_carry(source, tmp_path / f"target{number}"))
        assert tokenizer("<|turn|>[PAD]")["input_ids"] == [1, 32001, 32000]
        assert len(tokenizer) == 32002


def test_a_bare_sentencepiece_model_tokenizes_as_its_own_library_does(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _bare_sentencepiece(source)
    target = _carry(source, tmp_path / "target")
    tokenizer = _load(target)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text), text
        assert tokenizer.decode(reference.encode(text)) == reference.decode(reference.encode(text)), text
    assert len(tokenizer) == reference.vocab_size() == 32000
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (reference.bos_id(), reference.eos_id()) == (1, 2)
