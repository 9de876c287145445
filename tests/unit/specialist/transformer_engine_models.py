"""Specialists of Transformer Engine's layers, built without a GPU; run by `test_transformer_engine.py` in a process.

python -m pytest -p tests.transformer_engine_stand_in tests/unit/specialist/transformer_engine_models.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.fp8_utils import get_fp8_recipe, is_first_last_bf16_layer
from megatron.core.transformer.enums import AttnMaskType
from transformer_engine.common import recipe as recipes
from transformer_engine.pytorch import DotProductAttention, LayerNormLinear, Linear
from transformer_engine.pytorch import RMSNorm as FusedRMSNorm
from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

from megafuser.checkpoint.loading import load_specialist_weights, load_weights_into
from megafuser.checkpoint.manifest import read_manifest
from megafuser.checkpoint.specialist_sources import converted_source
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.gate import GateConfig
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.config.stages import JointConfig
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.fusion.model import build_fused_model
from megafuser.runtime.distributed import single_process_cpu
from megafuser.runtime.world import World
from megafuser.specialist.build import Specialist, build_specialist
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.core_attention import packed_segments
from megafuser.training.session import Session
from tests.gpu.models import TINY, copy_weights, trio
from tests.saved_weights import save_weights
from tests.tiny_models import make_model
from tests.transformer_engine_stand_in import NeedsGpu, pretended_gpu

FP8 = (None, "delayed", "tensorwise", "blockwise")
# head_dim and sliding_window as the families' own tests have them; biases wherever a family may have them
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama-tied": {"family": "llama", "tie_word_embeddings": True},
    "llama-biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-attention-bias": {"family": "llama", "attention_bias": True},
    "llama-mlp-bias": {"family": "llama", "mlp_bias": True},
    "mistral": {"family": "mistral", "sliding_window": None, "head_dim": 12},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3", "head_dim": 16},
    "qwen3-attention-bias": {"family": "qwen3", "head_dim": 16, "attention_bias": True},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the converter makes of a model of each kind."""
    root = tmp_path_factory.mktemp("converted")
    converted = {}
    for name, settings in MODELS.items():
        import_specialist(make_model(root / "hf" / name, **settings), root / name, verify="none")
        converted[name] = root / name
    return converted


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with single_process_cpu():
        yield


def card_of(checkpoint: Path) -> ArchitectureCard:
    return ArchitectureCard.from_dict(read_manifest(checkpoint).content["card"])


def build(checkpoint: Path, backend: str, fp8: str | None = None, dtype: str = "bf16", **precision: Any) -> Specialist:
    settings = PrecisionConfig(dtype=dtype, fp8=fp8, **precision)
    with pretended_gpu():
        return build_specialist(card_of(checkpoint), parallel=ParallelConfig(), precision=settings, backend=backend)


def shards(model: Specialist) -> dict[str, list[ShardedTensor]]:
    """The tensors of the model's sharded state, by the model's names; what else there is, is FP8 state."""
    found = {}
    for name, value in model.sharded_state_dict().items():
        if isinstance(value, ShardedObject):
            assert name.endswith("_extra_state"), f"{name} is neither a tensor nor FP8 state"
        else:
            found[name] = value.build() if isinstance(value, ShardedTensorFactory) else [value]
    return found


def described(model: Specialist) -> set[tuple[Any, ...]]:
    """What of which tensor of a checkpoint the model has."""
    return {
        (part.key, part.local_shape, part.global_shape, part.global_offset, part.dtype)
        for parts in shards(model).values()
        for part in parts
    }


def assert_bitwise_equal(first: Specialist, second: Specialist) -> None:
    """Compares weight by weight, by their places in a checkpoint; the names in the models differ."""

    def tensors(model: Specialist) -> dict[Any, torch.Tensor]:
        state = model.state_dict()
        return {(parts[0].key, parts[0].global_offset): state[name] for name, parts in shards(model).items()}

    own, other = tensors(first), tensors(second)
    assert own.keys() == other.keys() and len(own) > 20
    for key, tensor in own.items():
        assert torch.equal(tensor, other[key]) and tensor.dtype is other[key].dtype, key


@pytest.mark.parametrize("fp8", FP8)
@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_keys_shapes_and_offsets_are_the_local_ones(
    checkpoints: dict[str, Path], name: str, fp8: str | None
) -> None:
    assert described(build(checkpoints[name], "transformer_engine", fp8)) == described(
        build(checkpoints[name], "torch")
    )


@pytest.mark.parametrize(("name", "fp8"), [(name, FP8[index % len(FP8)]) for index, name in enumerate(MODELS)])
def test_a_converted_checkpoint_loads_bitwise_and_goes_back(
    checkpoints: dict[str, Path], name: str, fp8: str | None, tmp_path: Path
) -> None:
    fused, local = build(checkpoints[name], "transformer_engine", fp8), build(checkpoints[name], "torch")
    load_specialist_weights(fused, checkpoints[name])
    load_specialist_weights(local, checkpoints[name])
    assert_bitwise_equal(fused, local)
    assert any(parameter.abs().sum() > 0 for parameter in fused.parameters())
    tensors = {key: value for key, value in fused.sharded_state_dict().items() if not isinstance(value, ShardedObject)}
    save_weights(tensors, tmp_path)
    back = build(checkpoints[name], "torch")
    load_weights_into(back, tmp_path)
    assert_bitwise_equal(back, local)


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_fused_and_gate_heads_and_embeddings_are_not(checkpoints: dict[str, Path], name: str) -> None:
    model, card = build(checkpoints[name], "transformer_engine", "delayed"), card_of(checkpoints[name])
    layer = model.decoder.layers[0]
    assert isinstance(layer.self_attention.linear_qkv, LayerNormLinear)
    assert isinstance(layer.self_attention.linear_proj, Linear)
    assert isinstance(layer.self_attention.core_attention, DotProductAttention)
    assert isinstance(layer.mlp.linear_fc1, LayerNormLinear) and isinstance(layer.mlp.linear_fc2, Linear)
    assert isinstance(model.decoder.final_layernorm, FusedRMSNorm)
    assert isinstance(layer.self_attention.q_layernorm, FusedRMSNorm) is card.qk_norm
    biased = {
        "linear_qkv": card.qkv_bias,
        "linear_proj": card.attention_output_bias,
        "linear_fc1": card.mlp_bias,
        "linear_fc2": card.mlp_bias,
    }
    parameters = dict(layer.named_parameters())
    for linear, wanted in biased.items():
        assert any(key.endswith(f"{linear}.bias") for key in parameters) is wanted, linear
    outside = [model.embedding] + ([] if card.tie_word_embeddings else [model.output_layer])
    assert not any(isinstance(module, TransformerEngineBaseModule) for part in outside for module in part.modules())


@pytest.mark.parametrize(
    ("fp8", "kind", "forward", "backward"),
    [
        ("delayed", recipes.DelayedScaling, recipes.Format.HYBRID, "hybrid"),
        ("tensorwise", recipes.Float8CurrentScaling, recipes.Format.HYBRID, "hybrid"),
        ("blockwise", recipes.Float8BlockScaling, recipes.Format.E4M3, "e4m3"),
    ],
)
def test_each_recipe_is_transformer_engines(
    checkpoints: dict[str, Path], fp8: str, kind: type, forward: Any, backward: str
) -> None:
    config = build(checkpoints["llama"], "transformer_engine", fp8).config
    with pretended_gpu():
        recipe = get_fp8_recipe(config)
    assert isinstance(recipe, kind) and recipe.fp8_format is forward and config.fp8 == backward


DELAYED, CURRENT = recipes.DelayedScaling, recipes.Float8CurrentScaling


@pytest.mark.parametrize(
    ("stage", "frozen", "fp8", "kinds"),
    [
        ("warmup", (), "delayed", (CURRENT, CURRENT)),
        ("joint", (), "delayed", (DELAYED, DELAYED)),
        ("joint", ("qwen2",), "delayed", (DELAYED, CURRENT)),
        ("warmup", (), "blockwise", (recipes.Float8BlockScaling,) * 2),
        ("joint", ("llama",), "tensorwise", (CURRENT, CURRENT)),
    ],
)
def test_scales_are_of_the_tensor_at_hand_where_there_is_no_backward(
    checkpoints: dict[str, Path], stage: str, frozen: tuple[str, ...], fp8: str, kinds: tuple[type, ...]
) -> None:
    """Transformer Engine updates delayed scales under gradients alone; without them they would stay at 1."""
    names = ("llama", "qwen2")
    config = RunConfig(
        run_dir="run",
        specialists=tuple(SpecialistConfig(name, str(checkpoints[name]), "plain") for name in names),
        data=DataConfig(domains={"text": DomainConfig(train=("t",), valid=("v",))}),
        precision=PrecisionConfig(fp8=fp8),
        joint=JointConfig(frozen=frozen),
    )
    session = Session(
        config=config,
        world=World(rank=0, size=1, local_rank=0, launcher="single", local_size=1),
        device=torch.device("cpu"),
        backend="transformer_engine",
        sources=[converted_source(name, checkpoints[name]) for name in names],
        tokenizers={},
        tokenizer_files={},
        shared_vocabulary=100,
        end_id=2,
    )
    with pretended_gpu():
        (model,) = session.build_model(trained=config.trained(stage))
        found = [get_fp8_recipe(specialist.config) for specialist in model.specialists]
    # megatron-core derives classes of its own from delayed scaling
    assert all(isinstance(recipe, kind) for recipe, kind in zip(found, kinds, strict=True)), found
    if fp8 == "delayed":
        assert all(recipe.fp8_format is recipes.Format.HYBRID for recipe in found)


@pytest.mark.parametrize("fp8", ["tensorwise", "blockwise"])
def test_first_and_last_layers_stay_in_bf16(checkpoints: dict[str, Path], fp8: str) -> None:
    plain = build(checkpoints["llama"], "transformer_engine", fp8).config
    edges = build(checkpoints["llama"], "transformer_engine", fp8, fp8_first_last_bf16=True).config
    layers = range(edges.num_layers)
    assert [is_first_last_bf16_layer(plain, layer) for layer in layers] == [False] * 4
    assert [is_first_last_bf16_layer(edges, layer) for layer in layers] == [True, False, False, True]


def test_weight_gradients_are_added_inside_the_products(checkpoints: dict[str, Path]) -> None:
    model = build(checkpoints["llama"], "transformer_engine")
    linears = [module for module in model.modules() if isinstance(module, LayerNormLinear | Linear)]
    assert len(linears) == 4 * 4 and all(linear.fuse_wgrad_accumulation for linear in linears)


def test_packed_attention_reaches_the_kernels(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine accepts the row's description; what it is given is contiguous, causal within segments."""
    attention = build(checkpoints["qwen3"], "transformer_engine").decoder.layers[0].self_attention.core_attention
    query = torch.zeros(48, 4, 16, dtype=torch.bfloat16)
    key = torch.zeros(48, 2, 16, dtype=torch.bfloat16)
    boundaries = torch.tensor([0, 20, 32, 48], dtype=torch.int32)
    asked: dict[str, Any] = {}
    forward = DotProductAttention.forward

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.update(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(DotProductAttention, "forward", remember)
    # the CPU's tensors pass for a GPU's up to the first kernel
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with pretended_gpu(), pytest.raises(NeedsGpu):
        attention(query, key, key, None, AttnMaskType.causal, packed_seq_params=packed_segments(boundaries, 20, 2))
    assert asked["qkv_format"] == "thd" and asked["attn_mask_type"] == "padding_causal"
    assert asked["max_seqlen_q"] == asked["max_seqlen_kv"] == 20
    assert asked["cu_seqlens_q"] is boundaries and asked["cu_seqlens_kv"] is boundaries
    assert asked["cu_seqlens_q_padded"] is None and asked["cu_seqlens_kv_padded"] is None
    assert "segments" not in asked


def test_the_gpu_suite_copies_weights_between_the_backends() -> None:
    """By names of its own: every parameter of either backend has one of the other's."""
    with pretended_gpu():
        models = [
            build_fused_model(
                trio(TINY),
                parallel=ParallelConfig(),
                precision=PrecisionConfig(dtype="fp32"),
                backend=backend,
                gate=GateConfig(8),
                shared_vocabulary=TINY.vocabulary,
                seed=0,
            )
            for backend in ("torch", "transformer_engine")
        ]
    copy_weights(*models)
