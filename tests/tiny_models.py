"""Tiny random specialists for the tests: ordinary Hugging Face directories with real tokenizers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CORPUS = (
    "The quick brown fox jumps over the lazy dog. What is the sum of three and four? It is seven.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i)",
    "### Instruction: Answer the question. ### Response: User: Assistant: [INST] [/INST]",
    "One two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9.",
)
SHARED_VOCABULARY = 320


def make_tokenizer(directory: Path, extra_tokens: int = 0) -> PreTrainedTokenizerFast:
    """Writes a byte-level BPE tokenizer with BOS `<s>` and EOS `</s>`; `extra_tokens` ids follow the shared ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHARED_VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if extra_tokens:
        tokenizer.add_special_tokens([AddedToken(f"<extra_{i}>", special=True) for i in range(extra_tokens)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(directory)
    return fast


def make_llama(directory: Path, *, seed: int = 0, extra_tokens: int = 0, rope_theta: float = 1e4, **overrides) -> Path:
    """Writes a Llama, see `make_model`; `attention_bias` and `mlp_bias` are Llama's own."""
    return make_model(directory, "llama", seed=seed, extra_tokens=extra_tokens, rope_theta=rope_theta, **overrides)


def make_mistral(directory: Path, **settings: Any) -> Path:
    """Writes a Mistral without a sliding window, its heads wider than an even share; see `make_model`."""
    return make_model(directory, "mistral", **{"sliding_window": None, "head_dim": 12} | settings)


def make_qwen2(directory: Path, **settings: Any) -> Path:
    """Writes a Qwen 2, which has biases at queries, keys and values; see `make_model`."""
    return make_model(directory, "qwen2", **settings)


def make_qwen3(directory: Path, **settings: Any) -> Path:
    """Writes a Qwen 3, which has QK norms, with heads wider than an even share; see `make_model`."""
    return make_model(directory, "qwen3", **{"head_dim": 16} | settings)


def make_model(
    directory: Path,
    family: str,
    *,
    seed: int = 0,
    extra_tokens: int = 0,
    rope_theta: float = 1e4,
    **overrides: Any,
) -> Path:
    """Writes a `random_model` with its tokenizer; `extra_tokens` ids follow the shared ones; returns `directory`."""
    tokenizer = make_tokenizer(directory, extra_tokens)
    model = random_model(family, len(tokenizer), seed=seed, rope_theta=rope_theta, **overrides)
    model.save_pretrained(directory, safe_serialization=True)
    return directory


def random_model(
    family: str, vocab_size: int, *, seed: int = 0, rope_theta: float = 1e4, **overrides: Any
) -> PreTrainedModel:
    """A model of a few thousand parameters, norms and biases away from their initial values.

    Args:
        family: transformers' `model_type`.
        vocab_size: rows of its embedding.
        seed: of the weights.
        rope_theta: RoPE's θ.
        overrides: of the configuration.
    """
    settings = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
    } | overrides
    config = CONFIG_MAPPING[family](vocab_size=vocab_size, rope_theta=rope_theta, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model
