"""A specialist that is small and has no two sizes alike."""

from megafuser.specialist.card import ArchitectureCard

CARD = ArchitectureCard(
    family="llama",
    num_layers=2,
    hidden_size=48,
    ffn_hidden_size=80,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=16,
    vocab_size=331,
    max_position_embeddings=256,
    rotary_base=1e6,
    norm_epsilon=1e-3,
    tie_word_embeddings=False,
    qkv_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    rope_scaling=None,
)
