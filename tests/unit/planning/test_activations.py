"""The planned activations against the bytes that autograd saves in the real forward of every kind of layer."""

import dataclasses

import pytest
import torch

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.planning.activations import Row, Setting, block_saved, chunk_saved, layer_tensors, recomputed
from megafuser.planning.output_head import gate_saved
from megafuser.planning.parameters import rank_chunks
from tests.unit.planning.architectures import EQUAL, LARGER, ULTRAFUSER_13B, UNEQUAL
from tests.unit.planning.pretended import GATE, build_chunks, pretended_rank
from tests.unit.planning.rows import make_row

LENGTHS, WIDTH = [200, 130, 100, 20], 480
ROW = Row(width=WIDTH, used=sum(LENGTHS), response_tokens=sum(LENGTHS) / 2, longest=max(LENGTHS))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = 0.03  # the goal is 0.1
FORMS = [
    ("fp32", MemoryConfig()),
    ("bf16", MemoryConfig()),
    ("bf16", MemoryConfig(recompute="selective")),
    ("bf16", MemoryConfig(recompute="full")),
]
# layout, and one of its ranks: the first, a middle and the last stage, with and without sequence parallelism
PLACES = {
    "one": (ParallelConfig(), 0),
    "tp2": (ParallelConfig(tensor=2), 1),
    "tp4 sp": (ParallelConfig(tensor=4, sequence=True), 0),
    "last of tp2 pp2 sp": (ParallelConfig(tensor=2, pipeline=2, sequence=True), 3),
    "middle of pp3": (ParallelConfig(pipeline=3), 1),
    "first of pp2 vp2": (ParallelConfig(pipeline=2, virtual_pipeline=2), 0),
}
CARDS = {"equal": EQUAL, "unequal": UNEQUAL, "larger": LARGER}


class SavedBytes:
    """Counts what autograd keeps, a storage once, the model's parameters and the row excluded."""

    def __init__(self, model: FusedModel, row: PackedRow) -> None:
        views = [tensor for view in row.specialists for tensor in vars(view).values()]
        tensors = [*model.parameters(), *(tensor for tensor in views if isinstance(tensor, torch.Tensor))]
        self.known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.saved: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in self.known:
            self.saved.setdefault(storage, tensor)
        return tensor

    @property
    def total(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.saved.values())


def saved_by_layers(model: FusedModel, row: PackedRow, dtype: str, setting: Setting) -> int:
    """Bytes that the layers of a chunk save in their forward."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if not model.pre_process:
        width = int(setting.kept_width(row.specialists[0].input_ids.shape[1]))
        received = torch.randn(width, 1, sum(model.hidden_sizes), dtype=DTYPES[dtype], requires_grad=True)
        model.set_input_tensor([received])
    saved = SavedBytes(model, row)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        model.streams(row)
    return saved.total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CARDS)
def test_the_gate_keeps_what_is_planned(name: str, dtype: str) -> None:
    cards, parallel = CARDS[name], ParallelConfig()
    setting = Setting(parallel, PrecisionConfig(dtype=dtype), MemoryConfig(), "torch")  # type: ignore[arg-type]
    row = make_row(LENGTHS, WIDTH, len(cards))
    with pretended_rank(0, 1, parallel):
        model = build_chunks(cards, parallel, dtype)[0]
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        assert model.gate is not None
        hidden = [
            stream[view.response_positions, 0] for stream, view in zip(model.streams(row), row.specialists, strict=True)
        ]
        saved = SavedBytes(model, row)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            model.gate(hidden)
    assert gate_saved(cards, ROW, setting, GATE) == pytest.approx(saved.total, rel=0.1)


def chunk_of(parallel: ParallelConfig, rank: int) -> int:
    """The first chunk of a rank."""
    return rank_chunks(parallel, rank // parallel.tensor)[0]


def chosen_forms(name: str, place: str) -> list[tuple[str, MemoryConfig]]:
    """Each form with every card and in every place, but not with every card in every place."""
    wanted = (list(CARDS).index(name) - list(PLACES).index(place)) % len(CARDS)
    return [form for index, form in enumerate(FORMS) if index % len(CARDS) == wanted]


@pytest.mark.parametrize("every_form", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["chosen", "every"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CARDS)
def test_the_estimate_is_what_autograd_saves(name: str, place: str, every_form: bool) -> None:
    cards, (parallel, rank) = CARDS[name], PLACES[place]
    row = make_row(LENGTHS, WIDTH, len(cards))
    with pretended_rank(rank, parallel.tensor * parallel.pipeline, parallel):
        for dtype, memory in FORMS if every_form else chosen_forms(name, place):
            setting = Setting(parallel, PrecisionConfig(dtype=dtype), memory, "torch")  # type: ignore[arg-type]
            model = build_chunks(cards, parallel, dtype, memory)[0]
            found = saved_by_layers(model, row, dtype, setting)
            planned = chunk_saved(cards, ROW, setting, chunk_of(parallel, rank))
            assert planned == pytest.approx(found, rel=TOLERANCE), f"{memory} {dtype}"


def test_full_recompute_of_several_layers_at_once_keeps_fewer_inputs() -> None:
    memory = MemoryConfig(recompute="full", recompute_layers=2)
    setting = Setting(ParallelConfig(), PrecisionConfig(dtype="bf16"), memory, "torch")
    with pretended_rank(0, 1, ParallelConfig()):
        model = build_chunks(EQUAL, ParallelConfig(), "bf16", memory)[0]
        found = saved_by_layers(model, make_row(LENGTHS, WIDTH, len(EQUAL)), "bf16", setting)
    assert chunk_saved(EQUAL, ROW, setting, 0) == pytest.approx(found, rel=TOLERANCE)
    every_layer = dataclasses.replace(setting, memory=MemoryConfig(recompute="full"))
    assert chunk_saved(EQUAL, ROW, setting, 0) < chunk_saved(EQUAL, ROW, every_layer, 0)


def test_recompute_brings_back_what_it_does_not_keep() -> None:
    setting = Setting(ParallelConfig(), PrecisionConfig(dtype="bf16"), MemoryConfig(), "torch")
    card = dataclasses.replace(EQUAL["text"], num_query_groups=8)  # whose core attention reads what is kept anyway
    layer = sum(tensor.bytes for tensor in layer_tensors(card, ROW, setting))
    selective = dataclasses.replace(setting, memory=MemoryConfig(recompute="selective"))
    full = dataclasses.replace(setting, memory=MemoryConfig(recompute="full"))
    cards = {"text": card}
    assert recomputed(cards, ROW, setting) == 0
    assert recomputed(cards, ROW, full) == layer
    saved = block_saved(card, ROW, setting, layers=3) - block_saved(card, ROW, selective, layers=3)
    assert saved == pytest.approx(3 * recomputed(cards, ROW, selective), rel=0.05)  # RoPE's cosines are kept in one


def test_sequence_parallelism_and_fp8_make_the_13b_trio_smaller() -> None:
    row = Row(width=4096, used=4096, response_tokens=2048, longest=4096)
    alone = Setting(ParallelConfig(tensor=8), PrecisionConfig(), MemoryConfig(), "transformer_engine")
    together = dataclasses.replace(alone, parallel=ParallelConfig(tensor=8, sequence=True))
    fp8 = dataclasses.replace(together, precision=PrecisionConfig(fp8="delayed"))
    sizes = [chunk_saved(ULTRAFUSER_13B, row, setting, 0) for setting in (alone, together, fp8)]
    assert sizes[0] > 2 * sizes[1] > 2 * sizes[2] > 0
