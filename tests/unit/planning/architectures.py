"""Architectures to plan for: the paper's trio, a trio of Qwen 2.5 7B, and small sets that can run."""

import dataclasses

from megafuser.specialist.card import ArchitectureCard
from tests.unit.specialist.small_card import CARD

_LLAMA_13B = dataclasses.replace(
    CARD,
    num_layers=40,
    hidden_size=5120,
    ffn_hidden_size=13824,
    num_attention_heads=40,
    num_query_groups=40,
    kv_channels=128,
    vocab_size=32000,
    max_position_embeddings=4096,
)
_QWEN_7B = dataclasses.replace(
    CARD,
    family="qwen2",
    num_layers=28,
    hidden_size=3584,
    ffn_hidden_size=18944,
    num_attention_heads=28,
    num_query_groups=4,
    kv_channels=128,
    vocab_size=152064,
    max_position_embeddings=32768,
    qkv_bias=True,
)
Cards = dict[str, ArchitectureCard]

ULTRAFUSER_13B: Cards = {
    "text": _LLAMA_13B,
    "code": dataclasses.replace(_LLAMA_13B, vocab_size=32016, max_position_embeddings=16384),
    "math": dataclasses.replace(_LLAMA_13B, vocab_size=32001),
}
QWEN_7B: Cards = {name: _QWEN_7B for name in ("chat", "coder", "math")}

EQUAL: Cards = {
    name: dataclasses.replace(CARD, num_layers=4, num_attention_heads=8, num_query_groups=4, vocab_size=320 + extra)
    for name, extra in (("text", 0), ("code", 16), ("math", 1))
}
# Of every kind of parameter some; numbers of layers and widths differ, and two embeddings are tied.
UNEQUAL: Cards = {
    "deep": dataclasses.replace(
        CARD, num_layers=6, num_attention_heads=4, num_query_groups=4, qk_norm=True, tie_word_embeddings=True
    ),
    "wide": dataclasses.replace(
        CARD,
        num_layers=4,
        hidden_size=72,
        ffn_hidden_size=176,
        num_attention_heads=4,
        num_query_groups=4,
        qkv_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
}
LARGER: Cards = {
    name: dataclasses.replace(
        CARD,
        num_layers=5,
        hidden_size=128,
        ffn_hidden_size=344,
        num_attention_heads=8,
        num_query_groups=groups,
        kv_channels=24,
        vocab_size=1000,
        qkv_bias=True,
    )
    for name, groups in (("a", 8), ("b", 4), ("c", 4))
}
