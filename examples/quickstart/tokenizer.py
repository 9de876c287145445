"""The example's tokenizers: one byte-level BPE, trained on the three training corpora, in three variants.

The variants share every id below `SHARED_VOCABULARY` and differ in the rows after it, as the specialists of the paper
do: none for text, 16 infill tokens for code, one padding token for math.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SHARED_VOCABULARY = 4096
EXTRA_TOKENS = {"text": [], "code": [f"<infill_{index}>" for index in range(16)], "math": ["[PAD]"]}


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Trains the shared tokenizer of `SHARED_VOCABULARY` pieces; `<s>` and `</s>` are BOS and EOS."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one, as Llama has them: numbers are then copied and computed, not memorized.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHARED_VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def specialist_tokenizer(path: Path, domain: str) -> PreTrainedTokenizerFast:
    """The tokenizer of one specialist: the shared one of the file `path` and the domain's extra tokens."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in EXTRA_TOKENS[domain]])
    padding = {"pad_token": "[PAD]"} if domain == "math" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **padding
    )
