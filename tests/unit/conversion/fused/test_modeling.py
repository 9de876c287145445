"""The modeling file of an exported fusion, by itself: against the method written out, and against its own slow ways."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megafuser.conversion.fused import modeling_megafuser
from megafuser.conversion.fused.modeling_megafuser import FusedCache, MegafuserForCausalLM
from tests.fused_case import SPECIALISTS, make_hf_specialists
from tests.reference import DenseFusion
from tests.tiny_models import SHARED_VOCABULARY

V, END, PAD = SHARED_VOCABULARY, 2, 2
NAMES = list(SPECIALISTS)
UNEQUAL = {
    "small": {"hidden_size": 16, "head_dim": 8},
    "large.v2": {"extra_tokens": 5, "num_hidden_layers": 1},
}


def write_layout(root: Path, specialists: dict[str, dict[str, Any]], seed: int = 7) -> Path:
    """A fused directory written by hand: specialists, a gate that tells them apart, and the configuration."""
    out = root / "fused"
    for path in make_hf_specialists(root, specialists).values():
        (out / "specialists").mkdir(parents=True, exist_ok=True)
        path.rename(out / "specialists" / path.name)
    sizes = [settings.get("hidden_size", 32) for settings in specialists.values()]
    generator = torch.Generator().manual_seed(seed)
    shapes = {"fc1.weight": (16, max(sizes)), "fc1.bias": (16,), "fc2.weight": (1, 16), "fc2.bias": (1,)}
    if len(set(sizes)) > 1:
        shapes |= {f"project.{name}.weight": (max(sizes), h) for name, h in zip(specialists, sizes, strict=True)}
    # scaled by the width, so that every specialist gets some weight
    gate = {key: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for key, shape in shapes.items()}
    save_file(gate, out / "gate.safetensors")
    config = {
        "model_type": "megafuser",
        "architectures": ["MegafuserForCausalLM"],
        "vocab_size": V,
        "gate_hidden_size": 16,
        "specialists": [{"name": n, "hidden_size": h} for n, h in zip(specialists, sizes, strict=True)],
    }
    (out / "config.json").write_text(json.dumps(config))
    tokens = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": PAD}
    (out / "generation_config.json").write_text(json.dumps(tokens))
    return out


@pytest.fixture(scope="module", params=["equal", "unequal"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    specialists = SPECIALISTS if request.param == "equal" else UNEQUAL
    return write_layout(tmp_path_factory.mktemp(request.param), specialists)


@pytest.fixture(scope="module")
def fused(directory: Path) -> MegafuserForCausalLM:
    return MegafuserForCausalLM.from_pretrained(directory)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, V, shape, generator=torch.Generator().manual_seed(seed))


def prompts_of(fused: MegafuserForCausalLM, batch: int = 1) -> dict[str, torch.Tensor]:
    """Ids of its own for each specialist, all of different lengths."""
    return {name: random_ids(batch, 6 + 3 * k, seed=k) for k, name in enumerate(fused.names)}


def dense_logits(directory: Path, ids: dict[str, torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last `length` positions' logits and weights by the formula in float64; ids [S_k] for each specialist."""
    gate = load_file(directory / "gate.safetensors")
    dense = DenseFusion({name: directory / "specialists" / name for name in ids}, gate, V)
    hidden, logits = [], []
    for name, own in ids.items():
        states = dense.models[name].model(input_ids=own[None]).last_hidden_state[0, -length:]
        logits.append(dense.models[name].lm_head(states)[:, :V])
        project = dense.gate.get(f"project.{name}.weight")
        hidden.append(states if project is None else states @ project.T)
    scores = [
        torch.relu(h @ dense.gate["fc1.weight"].T + dense.gate["fc1.bias"]) @ dense.gate["fc2.weight"].T
        + dense.gate["fc2.bias"]
        for h in hidden
    ]
    weights = torch.softmax(torch.cat(scores, dim=1), dim=1)
    return sum(weights[:, k, None] * z for k, z in enumerate(logits)), weights


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return float((ours.double() - reference.double()).abs().max()) < tolerance * float(reference.abs().max())


def greedy(fused: MegafuserForCausalLM, prompts: dict[str, torch.Tensor], steps: int) -> list[int]:
    """The plain way: everything again for each token; prompts [S_k] for each specialist."""
    response: list[int] = []
    for _ in range(steps):
        ids = {name: torch.cat([prompt, prompt.new_tensor(response)])[None] for name, prompt in prompts.items()}
        response.append(int(fused(specialist_input_ids=ids, use_cache=False).logits[0, -1].argmax()))
        if response[-1] == END:
            break
    return response


def test_logits_and_weights_are_the_formulas(fused: MegafuserForCausalLM, directory: Path) -> None:
    ids = random_ids(1, 19)
    output = fused(input_ids=ids)
    logits, weights = dense_logits(directory, dict.fromkeys(fused.names, ids[0]), 19)
    assert output.logits.shape == (1, 19, V) and output.logits.dtype == torch.float32
    assert close(output.logits[0], logits) and close(output.gate[0], weights)
    assert float(weights.std(0).max()) > 0.05 and float(weights.median(0).values.min()) > 0.01  # a gate at work


def test_own_ids_are_aligned_on_the_right(fused: MegafuserForCausalLM, directory: Path) -> None:
    response = random_ids(1, 5, seed=9)
    ids = {name: torch.cat([prompt, response], dim=1) for name, prompt in prompts_of(fused).items()}
    output = fused(specialist_input_ids=ids)
    logits, weights = dense_logits(directory, {name: own[0] for name, own in ids.items()}, 11)
    assert output.logits.shape == (1, 11, V)
    assert close(output.logits[0], logits) and close(output.gate[0], weights)
    # a specialist that is left out reads input_ids
    *named, last = fused.names
    some = fused(input_ids=ids[last], specialist_input_ids={name: ids[name] for name in named})
    assert torch.equal(some.logits, output.logits)
    assert close(fused(specialist_input_ids=ids, logits_to_keep=2).logits, output.logits[:, -2:])


def test_loss_is_that_of_the_next_tokens(fused: MegafuserForCausalLM) -> None:
    ids = random_ids(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    output = fused(input_ids=ids, labels=labels)
    logs = torch.log_softmax(output.logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    expected = -logs[labels[:, 1:] != -100].mean()
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-5)
    assert fused(input_ids=ids, labels=labels, return_dict=False)[1].shape == (2, 9, V)


def test_padding_on_the_left_changes_nothing(fused: MegafuserForCausalLM) -> None:
    ids = random_ids(1, 7)
    padded = torch.cat([torch.full((1, 4), PAD), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(ids)], dim=1)
    alone = fused(input_ids=ids)
    assert close(fused(input_ids=padded, attention_mask=mask).logits[:, 4:], alone.logits)
    own = dict.fromkeys(fused.names, padded)
    masks = dict.fromkeys(fused.names, mask)
    assert close(fused(specialist_input_ids=own, specialist_attention_mask=masks).logits[:, 4:], alone.logits)


def test_positions_are_counted_without_pads(fused: MegafuserForCausalLM) -> None:
    """RoPE sees differences only, so logits alone would not tell; contexts are limited in positions."""
    seen: list[list[list[int]]] = []
    hook = fused.specialists[1].base_model.register_forward_pre_hook(
        lambda module, args, named: seen.append(named["position_ids"].tolist()), with_kwargs=True
    )
    try:
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        cache = fused(input_ids=random_ids(2, 5), attention_mask=mask).past_key_values
        mask = torch.cat([mask, torch.ones(2, 2, dtype=torch.long)], dim=1)
        fused(input_ids=random_ids(2, 2), attention_mask=mask, past_key_values=cache)
        fused(input_ids=random_ids(1, 3))
    finally:
        hook.remove()
    assert seen == [[[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]], [[3, 4], [5, 6]], [[0, 1, 2]]]


def test_a_cache_goes_on_where_it_ended(fused: MegafuserForCausalLM) -> None:
    ids = random_ids(2, 12)
    whole = fused(input_ids=ids)
    first = fused(input_ids=ids[:, :7])
    assert isinstance(first.past_key_values, FusedCache)
    second = fused(input_ids=ids[:, 7:], past_key_values=first.past_key_values)
    assert close(torch.cat([first.logits, second.logits], dim=1), whole.logits)
    with pytest.raises(ValueError, match="mask has 5 positions for 12 cached, 5 new"):
        fused(input_ids=ids[:, 7:], past_key_values=first.past_key_values, attention_mask=torch.ones(2, 5))


@pytest.mark.parametrize(
    "settings",
    [
        {"sliding_window": 4},  # which Llama does not read, nor what follows
        {"sliding_window": 4, "layer_types": ["sliding_attention"] * 4},
        {"attention_chunk_size": 4},
        {"family": "mistral", "sliding_window": 4},
    ],
)
def test_a_cache_has_all_that_attention_reads(tmp_path: Path, settings: dict[str, Any]) -> None:
    fused = MegafuserForCausalLM.from_pretrained(write_layout(tmp_path, {"text": settings, "code": {}}))
    config = fused.specialists[0].config
    assert all(getattr(config, name) == value for name, value in settings.items() if name != "family")
    ids = random_ids(1, 16)
    whole = fused(input_ids=ids, use_cache=False).logits
    parts, cache = [], None
    for new in ids.split(5, dim=1):
        output = fused(input_ids=new, past_key_values=cache)
        parts, cache = [*parts, output.logits], output.past_key_values
    assert close(torch.cat(parts, dim=1), whole)
    output = fused.generate(ids[:, :8], max_new_tokens=12, do_sample=False)
    assert output[0, 8:].tolist() == greedy(fused, dict.fromkeys(fused.names, ids[0, :8]), 12)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_the_plain_loop(fused: MegafuserForCausalLM, use_cache: bool) -> None:
    ids = random_ids(1, 8)
    expected = greedy(fused, dict.fromkeys(fused.names, ids[0]), 12)
    output = fused.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use_cache)
    assert output[0].tolist() == [*ids[0].tolist(), *expected]

    prompts = prompts_of(fused)
    expected = greedy(fused, {name: own[0] for name, own in prompts.items()}, 12)
    ids = prompts[fused.names[0]]
    output = fused.generate(
        input_ids=ids, specialist_input_ids=prompts, max_new_tokens=12, do_sample=False, use_cache=use_cache
    )
    assert output[0].tolist() == [*ids[0].tolist(), *expected]


def test_a_batch_with_left_padding_generates_what_each_does_alone(fused: MegafuserForCausalLM) -> None:
    lengths = {name: (5 + 2 * k, 9 - 2 * k) for k, name in enumerate(fused.names)}
    alone: list[dict[str, torch.Tensor]] = [
        {name: random_ids(1, sizes[row], seed=10 * row + k) for k, (name, sizes) in enumerate(lengths.items())}
        for row in range(2)
    ]
    ids, masks = {}, {}
    for name in fused.names:
        width = max(lengths[name])
        rows = [row[name][0] for row in alone]
        ids[name] = torch.stack([torch.cat([row.new_full((width - len(row),), PAD), row]) for row in rows])
        masks[name] = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    expected = [greedy(fused, {name: own[0] for name, own in row.items()}, 10) for row in alone]
    first = fused.names[0]
    output = fused.generate(
        input_ids=ids[first],
        attention_mask=masks[first],
        specialist_input_ids=ids,
        specialist_attention_mask=masks,
        max_new_tokens=10,
        do_sample=False,
    )
    for row, response in zip(output[:, ids[first].shape[1] :].tolist(), expected, strict=True):
        assert row == [*response, *[PAD] * (len(row) - len(response))]
    raw = [greedy(fused, dict.fromkeys(fused.names, row[first][0]), 10) for row in alone]
    output = fused.generate(ids[first], attention_mask=masks[first], max_new_tokens=10, do_sample=False)
    for row, response in zip(output[:, ids[first].shape[1] :].tolist(), raw, strict=True):
        assert row == [*response, *[PAD] * (len(row) - len(response))]


def test_beams_keep_their_caches(fused: MegafuserForCausalLM) -> None:
    prompts = prompts_of(fused, batch=2)
    arguments = {"input_ids": prompts[fused.names[0]], "specialist_input_ids": prompts, "max_new_tokens": 8}
    arguments |= {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    cached = fused.generate(**arguments)
    assert cached.shape[0] == 4
    assert torch.equal(cached, fused.generate(**arguments, use_cache=False))


def test_sampling_never_leaves_the_shared_vocabulary(fused: MegafuserForCausalLM) -> None:
    torch.manual_seed(0)
    ids = random_ids(1, 5)
    output = fused.generate(ids, do_sample=True, temperature=50.0, top_k=0, max_new_tokens=40, num_return_sequences=8)
    assert output.shape[0] == 8 and int(output.max()) < V
    assert len({tuple(row) for row in output.tolist()}) == 8


def test_saving_writes_the_same_layout(fused: MegafuserForCausalLM, directory: Path, tmp_path: Path) -> None:
    fused.save_pretrained(tmp_path / "again")
    written = {str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*") if path.is_file()}
    there = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert written == there | {"modeling_megafuser.py"}
    gate, again = (load_file(path / "gate.safetensors") for path in (directory, tmp_path / "again"))
    assert gate.keys() == again.keys() and all(torch.equal(value, again[key]) for key, value in gate.items())
    ids = random_ids(1, 6)
    reloaded = MegafuserForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(reloaded(input_ids=ids).logits, fused(input_ids=ids).logits)
    assert reloaded.generation_config.eos_token_id == END


def test_saving_takes_what_transformers_trainer_gives(fused: MegafuserForCausalLM, tmp_path: Path) -> None:
    """Among it weights that the model itself does not have, as where each process has a part of it."""
    state = {key: value.clone() for key, value in fused.state_dict().items()}
    for key in ("gate.fc1.weight", "specialists.0.model.norm.weight", "specialists.1.lm_head.weight"):
        state[key] *= 2
    more = {"safe_serialization": True, "push_to_hub": False, "save_function": torch.save, "token": None}
    fused.save_pretrained(tmp_path / "given", state_dict=state, is_main_process=True, **more)
    written = MegafuserForCausalLM.from_pretrained(tmp_path / "given").state_dict()
    assert written.keys() == state.keys() and all(torch.equal(value, state[key]) for key, value in written.items())
    fused.save_pretrained(tmp_path / "nothing", state_dict={}, is_main_process=False)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("safe_serialization", False), ("push_to_hub", True), ("variant", "fp16"), ("repo_id", "org/fused")],
)
def test_saving_refuses_what_it_does_not_do(
    fused: MegafuserForCausalLM, tmp_path: Path, argument: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"save_pretrained takes no {argument}={value!r}"):
        fused.save_pretrained(tmp_path / "out", **{argument: value})
    assert not (tmp_path / "out").exists()


def test_saving_refuses_weights_that_are_not_the_models(fused: MegafuserForCausalLM, tmp_path: Path) -> None:
    state = fused.state_dict()
    some = {key: value for key, value in state.items() if not key.startswith("specialists.1.")}
    for given, says in (
        ({}, "no weights gate"),
        (some, "no weights specialists.1"),
        (state | {"lm_head.weight": torch.ones(2)}, "that are no specialist's and not the gate's"),
    ):
        with pytest.raises(ValueError, match=says):
            fused.save_pretrained(tmp_path / "out", state_dict=given)
    assert not (tmp_path / "out").exists()


def test_dtype_is_the_stored_one_or_the_one_asked_for(fused: MegafuserForCausalLM, directory: Path) -> None:
    places = dict.fromkeys(fused.names, "cpu")
    half = MegafuserForCausalLM.from_pretrained(directory, dtype="bfloat16", device_map=places)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    ids = random_ids(1, 6)
    output = half(input_ids=ids)
    assert output.logits.dtype == output.gate.dtype == torch.float32
    assert close(output.logits, fused(input_ids=ids).logits, 0.2)


def test_a_name_of_the_hub_is_downloaded(
    fused: MegafuserForCausalLM, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(name: str, **arguments: Any) -> str:
        asked.append((name, arguments))
        return str(directory)

    monkeypatch.setattr(modeling_megafuser, "snapshot_download", download)
    model = MegafuserForCausalLM.from_pretrained("org/fused", revision="abc", token="secret", device_map="auto")
    assert asked == [("org/fused", {"revision": "abc", "token": "secret"})]
    ids = random_ids(1, 4)
    assert torch.equal(model(input_ids=ids).logits, fused(input_ids=ids).logits)


def test_arguments_reach_the_specialists_through_the_auto_class(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    MegafuserForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "fused")
    for given in ({"attn_implementation": "eager", "dtype": torch.float16}, {}):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", trust_remote_code=True, **given)
        assert type(model).__module__.startswith("transformers_modules.")
        for specialist in model.specialists:
            assert specialist.config._attn_implementation == given.get("attn_implementation", "sdpa")
        assert model.gate.fc1.weight.dtype == model.dtype == given.get("dtype", torch.float32)


def test_wrong_names_and_missing_ids_are_refused(fused: MegafuserForCausalLM) -> None:
    ids = random_ids(1, 4)
    with pytest.raises(ValueError, match="'nobody' has no specialist"):
        fused(input_ids=ids, specialist_input_ids={"nobody": ids})
    with pytest.raises(ValueError, match="or no ids of its own"):
        fused(input_ids=ids, specialist_attention_mask={fused.names[0]: torch.ones_like(ids)})
    with pytest.raises(ValueError, match="give input_ids"):
        fused(specialist_input_ids={fused.names[0]: ids})
    with pytest.raises(ValueError, match="what comes back begins with them"):
        fused.generate(specialist_input_ids=dict.fromkeys(fused.names, ids))
    with pytest.raises(ValueError, match=f"{fused.names[1]} has 1 prompts, and input_ids 2"):
        two = random_ids(2, 4)
        fused.generate(two, specialist_input_ids={fused.names[0]: two, fused.names[1]: ids})


def test_saving_below_its_own_directory_copies_only_the_model(directory: Path, tmp_path: Path, monkeypatch) -> None:
    """As where a fine-tune's checkpoints lie in it: they are not part of the model, nor are copies of themselves."""
    own = Path(shutil.copytree(directory, tmp_path / "own"))
    monkeypatch.chdir(tmp_path)
    fused = MegafuserForCausalLM.from_pretrained("own")
    monkeypatch.chdir("/")
    there = {str(path.relative_to(own)) for path in own.rglob("*") if path.is_file()} | {"modeling_megafuser.py"}
    for name in ("checkpoint-1", "checkpoint-2"):
        target = own / "out" / name
        target.mkdir(parents=True)
        (own / "out" / "optimizer.pt").touch()
        fused.save_pretrained(target)
        assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == there
    shutil.rmtree(own)
    with pytest.raises(FileNotFoundError, match=f"{own}, from which the model was loaded, is gone"):
        fused.save_pretrained(tmp_path / "late")
