"""A converted specialist at every layout: each rank's piece against slices of the Hugging Face weights.

Four processes go through all layouts, with data parallelism where fewer ranks hold a model; this file is also what
they run.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megafuser.checkpoint.importer import import_specialist
from megafuser.checkpoint.specialist import read_specialist
from megafuser.checkpoint.specialist_weights import load_specialist_weights
from megafuser.config.schema import ParallelConfig, PrecisionConfig
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import World, detect_world
from megafuser.specialist.build import Specialist, build_specialist
from tests.parallel.launch import free_ports
from tests.tiny_models import make_llama

WORLD = 4
LAYOUTS = [(tensor, pipeline) for tensor in (1, 2) for pipeline in (1, 2)]
NAMES = ("untied", "tied")
PADDED_ROWS = 384


def _vocabulary_rows(table: torch.Tensor, rank: int, size: int, rows: int) -> torch.Tensor:
    padded = torch.cat([table, torch.zeros(rows - len(table), table.shape[1])])
    return padded[rows // size * rank : rows // size * (rank + 1)]


def _expected(hf: dict[str, torch.Tensor], layer: int, rank: int, size: int) -> dict[str, torch.Tensor]:
    """One layer's piece on one of `size` tensor-parallel ranks, from the meaning of each weight (4 heads, 2 groups)."""
    source = f"model.layers.{layer}."
    q, k, v = (hf[f"{source}self_attn.{name}_proj.weight"].unflatten(0, (-1, 16)) for name in "qkv")
    groups = range(2 // size * rank, 2 // size * (rank + 1))
    qkv = [part for g in groups for part in (q[2 * g], q[2 * g + 1], k[g], v[g])]
    width = 64 // size
    mlp = slice(width * rank, width * (rank + 1))
    return {
        "input_layernorm.weight": hf[f"{source}input_layernorm.weight"],
        "pre_mlp_layernorm.weight": hf[f"{source}post_attention_layernorm.weight"],
        "self_attention.linear_qkv.weight": torch.cat(qkv),
        "self_attention.linear_proj.weight": hf[f"{source}self_attn.o_proj.weight"][:, mlp],
        "mlp.linear_fc1.weight": torch.cat([hf[f"{source}mlp.{name}_proj.weight"][mlp] for name in ("gate", "up")]),
        "mlp.linear_fc2.weight": hf[f"{source}mlp.down_proj.weight"][:, mlp],
    }


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


def _load_and_check(world: World, parallel: ParallelConfig, models: Path) -> None:
    with distributed(parallel, seed=0, device=torch.device("cpu"), world=world):
        for name in NAMES:
            _, card = read_specialist(models / f"{name}.mcore")
            model = build_specialist(card, parallel=parallel, precision=PrecisionConfig(dtype="fp32"), backend="torch")
            for parameter in model.parameters():
                parameter.data.fill_(7.0)  # what stays seven was not loaded
            load_specialist_weights(model, models / f"{name}.mcore")
            _check_piece(model, load_file(models / name / "model.safetensors"), parallel, world.rank)


def test_every_layout(tmp_path: Path) -> None:
    for name in NAMES:
        make_llama(tmp_path / name, extra_tokens=5, head_dim=16, tie_word_embeddings=name == "tied")
        import_specialist(tmp_path / name, tmp_path / f"{name}.mcore")
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "tests.parallel.test_specialist_layouts",
        str(tmp_path),
        *free_ports(len(LAYOUTS)),
    ]
    environment = os.environ | {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(command, cwd=root, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        pytest.fail("\n".join(errors))


if __name__ == "__main__":
    for (tensor, pipeline), port in zip(LAYOUTS, sys.argv[2:], strict=True):
        os.environ["MASTER_PORT"] = port
        _load_and_check(detect_world(), ParallelConfig(tensor=tensor, pipeline=pipeline), Path(sys.argv[1]))
