"""Converted specialists of every family at several layouts, against Hugging Face: each rank's weights, and the logits.

Four processes go through all layouts, with data parallelism where fewer ranks hold a model; this file is also what
they run.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megafuser.checkpoint.loading import load_specialist_weights
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import World, detect_world
from megafuser.specialist.build import Specialist, build_specialist
from megafuser.specialist.core_attention import packed_segments
from tests.parallel.launch import run_ranks
from tests.ports import free_ports
from tests.tiny_models import SHARED_VOCABULARY, make_model

WORLD = 4
LLAMA3 = {"rope_type": "llama3", "factor": 3.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0}
# All have 4 heads of width 16 in 2 groups, and an MLP as wide as all heads.
MODELS: dict[str, dict[str, Any]] = {
    "untied": {"family": "llama"},
    "tied": {"family": "llama", "tie_word_embeddings": True},
    "attention_bias": {"family": "llama", "attention_bias": True},
    "mlp_bias": {"family": "llama", "mlp_bias": True},
    "all_biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "linear": {"family": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
    "llama3": {
        "family": "llama",
        "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 48, "rope_theta": 5e5},
    },
    "mistral": {"family": "mistral", "sliding_window": None},
    "qwen2": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"family": "qwen3"},
}
PADDED_ROWS = 384
PROMPT = 120
# By tensor and pipeline size. What is split in both ways has all that each of them does to a family; where one holds a
# whole vocabulary, or both ends of a model, that differs by whether its embedding is tied. One rank alone is in
# `tests/unit/conversion`.
LAYOUTS: dict[tuple[int, int], tuple[str, ...]] = {
    (1, 2): ("untied", "tied"),
    (2, 1): ("untied", "tied"),
    (2, 2): tuple(MODELS),
}


def _vocabulary_rows(table: torch.Tensor, rank: int, size: int, rows: int) -> torch.Tensor:
    padded = torch.cat([table, torch.zeros(rows - len(table), table.shape[1])])
    return padded[rows // size * rank : rows // size * (rank + 1)]


def _expected(hf: dict[str, torch.Tensor], layer: int, rank: int, size: int) -> dict[str, torch.Tensor]:
    """One layer's piece on one of `size` tensor-parallel ranks, from the meaning of each weight (4 heads, 2 groups)."""
    source = f"model.layers.{layer}."
    groups = range(2 // size * rank, 2 // size * (rank + 1))
    width = 64 // size
    mlp = slice(width * rank, width * (rank + 1))

    def qkv(kind: str) -> torch.Tensor:
        q, k, v = (hf[f"{source}self_attn.{name}_proj.{kind}"].unflatten(0, (-1, 16)) for name in "qkv")
        return torch.cat([part for g in groups for part in (q[2 * g], q[2 * g + 1], k[g], v[g])])

    def gate_up(kind: str) -> torch.Tensor:
        return torch.cat([hf[f"{source}mlp.{name}_proj.{kind}"][mlp] for name in ("gate", "up")])

    pieces = {
        "input_layernorm.weight": hf[f"{source}input_layernorm.weight"],
        "pre_mlp_layernorm.weight": hf[f"{source}post_attention_layernorm.weight"],
        "self_attention.linear_qkv.weight": qkv("weight"),
        "self_attention.linear_proj.weight": hf[f"{source}self_attn.o_proj.weight"][:, mlp],
        "mlp.linear_fc1.weight": gate_up("weight"),
        "mlp.linear_fc2.weight": hf[f"{source}mlp.down_proj.weight"][:, mlp],
    }
    if f"{source}self_attn.q_proj.bias" in hf:
        pieces["self_attention.linear_qkv.bias"] = qkv("bias")
    if f"{source}mlp.up_proj.bias" in hf:
        pieces["mlp.linear_fc1.bias"] = gate_up("bias")
    whole = {
        "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
        "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
        "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
        "mlp.linear_fc2.bias": "mlp.down_proj.bias",
    }
    return pieces | {ours: hf[source + theirs] for ours, theirs in whole.items() if source + theirs in hf}


def _check_piece(model: Specialist, hf: dict[str, torch.Tensor], parallel: ParallelConfig, rank: int) -> None:
    # megatron-core's order of ranks: tensor fastest, then data, then pipeline
    tensor_rank, stage = rank % parallel.tensor, rank // (WORLD // parallel.pipeline)
    layers = 4 // parallel.pipeline
    wanted = {}
    for local in range(layers):
        pieces = _expected(hf, stage * layers + local, tensor_rank, parallel.tensor)
        wanted |= {f"decoder.layers.{local}.{name}": piece for name, piece in pieces.items()}
    tied = "lm_head.weight" not in hf
    embedding = hf["model.embed_tokens.weight"]
    if stage == 0:
        rows = _vocabulary_rows(embedding, tensor_rank, parallel.tensor, PADDED_ROWS)
        wanted["embedding.word_embeddings.weight"] = rows
    if stage == parallel.pipeline - 1:
        wanted["decoder.final_layernorm.weight"] = hf["model.norm.weight"]
        if not tied or stage > 0:
            head = embedding if tied else hf["lm_head.weight"]
            wanted["output_layer.weight"] = _vocabulary_rows(head, tensor_rank, parallel.tensor, PADDED_ROWS)
    found = dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), f"{name} on rank {rank}"


@torch.no_grad()
def _logits(model: Specialist, ids: torch.Tensor) -> torch.Tensor | None:
    """The model's logits over all ranks that share it, [S, padded V]; None before the last stage."""
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    packed = packed_segments(bounds, max_seqlen=len(ids), segments=1)
    if not parallel_state.is_pipeline_first_stage():
        received = torch.empty(len(ids), 1, model.config.hidden_size)
        dist.recv(received, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor([received])
    hidden = model(ids[None], torch.arange(len(ids))[None], None, packed_seq_params=packed)
    if not parallel_state.is_pipeline_last_stage():
        dist.send(hidden.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
        return None
    part = hidden[:, 0] @ model.head_weight().T
    parts = [torch.empty_like(part) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
    dist.all_gather(parts, part, group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=1)


def _load_and_check(world: World, parallel: ParallelConfig, models: Path, names: Sequence[str]) -> None:
    with distributed(parallel, seed=0, device=torch.device("cpu"), world=world):
        for name in names:
            _, card = read_specialist(models / f"{name}.mcore")
            model = build_specialist(card, parallel=parallel, precision=PrecisionConfig(dtype="fp32"), backend="torch")
            for parameter in model.parameters():
                parameter.data.fill_(7.0)  # what stays seven was not loaded
            load_specialist_weights(model, models / f"{name}.mcore")
            _check_piece(model, load_file(models / name / "model.safetensors"), parallel, world.rank)
            logits, expected = _logits(model.eval(), torch.load(models / "ids.pt")), torch.load(models / f"{name}.pt")
            if logits is not None:
                assert (logits[:, : card.vocab_size] - expected).abs().max() <= 1e-4, name
                assert not logits[:, card.vocab_size :].any(), "rows that only fill up are zero"


def test_every_layout(tmp_path: Path) -> None:
    ids = torch.randint(SHARED_VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(1))
    torch.save(ids, tmp_path / "ids.pt")
    for name, settings in MODELS.items():
        make_model(tmp_path / name, **{"extra_tokens": 5, "head_dim": 16} | settings)
        import_specialist(tmp_path / name, tmp_path / f"{name}.mcore", verify="none")
        reference = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        torch.save(reference(ids[None]).logits[0].detach(), tmp_path / f"{name}.pt")
    arguments = [str(tmp_path), *free_ports(len(LAYOUTS))]
    run_ranks(WORLD, "tests.parallel.test_specialist_layouts", arguments, timeout=300)


if __name__ == "__main__":
    for ((tensor, pipeline), models), port in zip(LAYOUTS.items(), sys.argv[2:], strict=True):
        os.environ["MASTER_PORT"] = port
        own_parallel = ParallelConfig(tensor=tensor, pipeline=pipeline)
        _load_and_check(detect_world(), own_parallel, Path(sys.argv[1]), models)
