"""Builds a specialist: this rank's piece of a megatron-core `GPTModel` that ends at the last hidden state.

Its weights are loaded by `checkpoint.loading`; the kinds of its layers are `specialist.layer_specs`.
"""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.embedding import Embedding
from megafuser.specialist.layer_specs import block_spec
from megafuser.specialist.padded_vocabulary import padded_vocab_size
from megafuser.specialist.rotary import inverse_frequencies
from megafuser.specialist.transformer_config import transformer_config


class Specialist(GPTModel):
    """A `GPTModel` whose forward gives hidden states: the fused model applies the heads itself, after the gate.

    On the last pipeline stage that is the state after the final norm, [S, B, h] (a part of S under sequence
    parallelism); on the stages before it, what the next stage takes.
    """

    def _postprocess(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return hidden_states

    def head_weight(self) -> torch.Tensor:
        """The output head's rows on this tensor-parallel rank, [padded V / TP, h]; the embedding's, where tied."""
        weight: torch.Tensor
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        else:
            weight = self.output_layer.weight
        return weight


def build_specialist(
    card: ArchitectureCard,
    *,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    backend: str,
    padded_vocabulary: int | None = None,
    memory: MemoryConfig | None = None,
    vp_stage: int | None = None,
    cached: bool = False,
    trains: bool = True,
) -> Specialist:
    """Builds this rank's piece, with weights that are yet to be loaded.

    Args:
        card: the architecture.
        parallel: the layout that megatron-core's parallel state was made with.
        precision: compute dtype and FP8 recipe.
        backend: `transformer_engine` or `torch`.
        padded_vocabulary: rows of embedding and head; by default the card's, padded.
        memory: what the backward computes again; nothing where not given.
        vp_stage: which of this rank's chunks, where it has several.
        cached: see `block_spec`.
        trains: whether there is a backward.
    """
    config = transformer_config(
        card, parallel=parallel, precision=precision, backend=backend, memory=memory, trains=trains
    )
    specialist = Specialist(
        config,
        block_spec(card, config, backend, vp_stage, cached=cached),
        vocab_size=padded_vocabulary or padded_vocab_size(card.vocab_size, parallel.tensor),
        max_sequence_length=card.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=card.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=card.rotary_base,
        vp_stage=vp_stage,
    )
    if specialist.pre_process:
        Embedding.take_over(specialist.embedding.word_embeddings)
    if backend == "transformer_engine":
        _accumulate_weight_gradients(specialist)
    # Before any forward, since megatron-core keeps the tables that it makes of them. No buffer: a cast of the model
    # does not round them.
    specialist.rotary_pos_emb.inv_freq = inverse_frequencies(card).to(specialist.rotary_pos_emb.inv_freq.device)
    return specialist


def _accumulate_weight_gradients(specialist: Specialist) -> None:
    """Lets Transformer Engine's layers add weight gradients to `main_grad` inside the matrix products.

    megatron-core's `gradient_accumulation_fusion` would ask Apex for the same in the output head.
    """
    for module in specialist.decoder.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True
