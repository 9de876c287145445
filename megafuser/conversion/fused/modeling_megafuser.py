"""A fused language model: K finished models read every token, and a gate mixes their logits.

This file is the whole method for inference, and needs PyTorch and transformers alone. A directory with it loads by

    AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)

and holds the specialists as ordinary models (specialists/NAME/) and the gate (gate.safetensors). Source: "Fusing Highly
Specialized Language Models for Comprehensive Expertise" (ACL 2025, arXiv 2403.08281), Eq. 1.

Shapes: B batch, S positions, K specialists, h_k hidden sizes, V shared vocabulary.
"""

# mypy: disable-error-code="override,arg-type"
import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

# The argument for KV caches was renamed within transformers 5.
_GENERATION_ARGUMENTS = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
_CACHE = "cache" if "cache" in _GENERATION_ARGUMENTS else "past_key_values"

# What transformers' models take when they are saved: what is done here whatever is said, and what makes no difference.
_SAVING_DOES = {"safe_serialization": True, "push_to_hub": False, "distributed_checkpoint": False, "variant": None}
_SAVING_IGNORES = ("save_function", "token", "save_peft_format", "save_original_format")

Named = Mapping[str, Tensor] | None  # by specialist


class MegafuserConfig(PretrainedConfig):
    """What the fused model is made of."""

    model_type = "megafuser"

    def __init__(
        self,
        vocab_size: int = 0,
        specialists: Sequence[Mapping[str, Any]] = (),
        gate_hidden_size: int = 512,
        gate_temperature: float = 1.0,
        max_position_embeddings: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Describes the parts.

        Args:
            vocab_size: V, the number of ids that all specialists share; nothing beyond it is scored or generated.
            specialists: `name`, `hidden_size` and `template` of each: the `prompt` that it wants, Jinja with
                `instruction` and `system`, or null for its tokenizer's own chat template.
            gate_hidden_size: width of the gate.
            gate_temperature: what the gate's scores are divided by before the softmax.
            max_position_embeddings: the shortest context of any specialist.
            kwargs: what every configuration has.
        """
        self.vocab_size = vocab_size
        self.specialists = [dict(specialist) for specialist in specialists]
        self.gate_hidden_size = gate_hidden_size
        self.gate_temperature = gate_temperature
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)


class Gate(nn.Module):
    """One two-layer MLP, shared by all specialists: from a last hidden state to one score.

    g(h) = fc2(relu(fc1(h))), and w = softmax over the specialists of [g(h_1), …, g(h_K)] / temperature. Where hidden
    sizes differ, a projection of each specialist's own stands in front. Computed in float32, whatever dtype the weights
    have.
    """

    def __init__(self, hidden_sizes: Sequence[int], gate_hidden_size: int, temperature: float = 1.0) -> None:
        """Takes h of each specialist, in order, the width of the MLP, and the temperature."""
        super().__init__()
        self.temperature = temperature
        width, unequal = max(hidden_sizes), len(set(hidden_sizes)) > 1
        self.fc1 = nn.Linear(width, gate_hidden_size)
        self.fc2 = nn.Linear(gate_hidden_size, 1)
        self.project: Any = nn.ModuleList(nn.Linear(h, width, bias=False) for h in hidden_sizes if unequal)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """The weights [B, S, K] of hidden states [B, S, h_k]."""
        scores = torch.cat([self._score(k, h) for k, h in enumerate(hidden)], dim=-1)
        return torch.softmax(scores / self.temperature, dim=-1)

    def _score(self, specialist: int, hidden: Tensor) -> Tensor:
        hidden = hidden.float()
        if len(self.project):
            hidden = nn.functional.linear(hidden, self.project[specialist].weight.float())
        inner = torch.relu(nn.functional.linear(hidden, self.fc1.weight.float(), self.fc1.bias.float()))
        return nn.functional.linear(inner, self.fc2.weight.float(), self.fc2.bias.float())


class FusedCache(Cache):
    """One cache for each specialist; and all their layers in one list, so that reordering beams reorders them all."""

    def __init__(self, configs: Sequence[PretrainedConfig]) -> None:
        """Makes empty caches for models of these configurations."""
        # Every layer keeps all positions. By a configuration, transformers would forget those behind a window that it
        # names, though not every model reads it: a Llama's attention never slides, whatever its config.json says.
        self.specialists = [Cache([DynamicLayer() for _ in range(config.num_hidden_layers)]) for config in configs]
        super().__init__(layers=[layer for cache in self.specialists for layer in cache.layers])


@dataclass
class FusedOutput(CausalLMOutputWithPast):
    """What models give: loss, mixed logits [B, S, V], cache; and the specialists' weights, `gate` [B, S, K]."""

    gate: Tensor | None = None


class MegafuserForCausalLM(PreTrainedModel, GenerationMixin):
    """K specialists and a gate: logits = Σ_k w_k · logits_k, with the softmax over the vocabulary after the mixture."""

    config_class = MegafuserConfig
    supports_gradient_checkpointing = True
    # The specialists attend, each as it can.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: MegafuserConfig, specialists: Sequence[PreTrainedModel]) -> None:
        """Joins loaded specialists, in the configuration's order, with a gate that is yet to be loaded."""
        super().__init__(config)
        self.names = [specialist["name"] for specialist in config.specialists]
        hidden_sizes = [specialist["hidden_size"] for specialist in config.specialists]
        self.gate = Gate(hidden_sizes, config.gate_hidden_size, config.gate_temperature)
        self.post_init()  # initializes what is there by now: the gate
        self.specialists: Any = nn.ModuleList(specialists)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        specialist_input_ids: Named = None,
        specialist_attention_mask: Named = None,
        cache: FusedCache | None = None,
        past_key_values: FusedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> FusedOutput | tuple[Any, ...]:
        """Scores every position, or those that all specialists have in common.

        Args:
            input_ids: [B, S], for every specialist that is given no ids of its own.
            attention_mask: [B, S] for them, 0 at pads; with a cache, the cached positions included.
            labels: [B, S], −100 where there is nothing to learn; aligned with the logits on the right.
            specialist_input_ids: NAME → [B, S_k], the same response behind prompts of different lengths. These are
                aligned on the right, and the logits are those of the last min_k S_k positions.
            specialist_attention_mask: NAME → [B, S_k] for those; without one nothing is a pad.
            cache: of an earlier call, also as `past_key_values`; the ids are then the new ones only.
            use_cache: whether to return one; unless told, when not training.
            logits_to_keep: score only this many positions, the last ones; 0 for all.
            return_dict: False for a tuple.
        """
        cache = past_key_values if cache is None else cache
        use_cache = not self.training if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = FusedCache([specialist.config for specialist in self.specialists])
        views = self._views(input_ids, attention_mask, specialist_input_ids, specialist_attention_mask)
        hidden = [self._hidden(k, ids, mask, cache)[:, -logits_to_keep:] for k, (ids, mask) in enumerate(views)]
        scored = min(h.shape[1] for h in hidden)
        hidden = [h[:, -scored:] for h in hidden]
        device = self.gate.fc1.weight.device
        weights = self.gate([h.to(device) for h in hidden])
        logits: Any = 0
        for k, (specialist, h) in enumerate(zip(self.specialists, hidden, strict=True)):
            own = specialist.get_output_embeddings()(h)[..., : self.config.vocab_size]
            logits = logits + weights[..., k, None] * own.float().to(device)
        labels = None if labels is None else labels[:, -scored:]
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        output = FusedOutput(loss=loss, logits=logits, gate=weights, **{_CACHE: cache})
        return output if return_dict else output.to_tuple()

    def _views(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, own_ids: Named, own_masks: Named
    ) -> list[tuple[Any, Tensor | None]]:
        """The ids and the mask of each specialist, in order: its own, or those for all."""
        own_ids, own_masks = own_ids or {}, own_masks or {}
        for name in {*own_ids, *own_masks}:
            if name not in self.names or name not in own_ids:
                raise ValueError(f"{name!r} has no specialist or no ids of its own; give ids for some of {self.names}")
        if input_ids is None and len(own_ids) < len(self.names):
            raise ValueError(f"give input_ids, or specialist_input_ids for all of {self.names}")
        common = input_ids, attention_mask
        return [(own_ids[name], own_masks.get(name)) if name in own_ids else common for name in self.names]

    def _hidden(self, k: int, ids: Tensor, mask: Tensor | None, cache: FusedCache | None) -> Tensor:
        """Specialist k's hidden states [B, S_k, h_k] behind its final norm: what its own head gets."""
        specialist, own_cache = self.specialists[k], None if cache is None else cache.specialists[k]
        ids = ids.to(specialist.device)
        past, new = 0 if own_cache is None else own_cache.get_seq_length(), ids.shape[1]
        if mask is None:
            positions = torch.arange(past, past + new, device=ids.device)[None]
        elif mask.shape[-1] != past + new:
            raise ValueError(
                f"{self.names[k]}: the mask has {mask.shape[-1]} positions for {past} cached, {new} new; give it "
                f"{past + new}"
            )
        else:
            mask = mask.to(ids.device)
            # Pads have no position: a sequence begins at 0, wherever it lies in its row.
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, _CACHE: own_cache}
        states: torch.Tensor = specialist.base_model(**inputs, use_cache=own_cache is not None).last_hidden_state
        return states

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generates as every model in transformers does; what is generated is one response for all specialists.

        With `specialist_input_ids` (and, in batches, `specialist_attention_mask`; pads are on the left) each has its
        own prompt. What comes back begins with `input_ids`, which are also the prompt of those without an own one.
        """
        if kwargs.get("specialist_input_ids") is not None:
            input_ids = inputs if inputs is not None else kwargs.get("input_ids")
            if input_ids is None:
                raise ValueError("give input_ids too: what comes back begins with them")
            for name, own in kwargs["specialist_input_ids"].items():
                if len(own) != len(input_ids):
                    raise ValueError(f"{name} has {len(own)} prompts, and input_ids {len(input_ids)}; give as many")
            kwargs["prompt_length"] = input_ids.shape[1]
        return super().generate(inputs, *args, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: the forward pass makes the cache, one for each specialist."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, prompt_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Puts what was generated so far behind each specialist's prompt, and leaves out what its cache has.

        `prompt_length` is where in `input_ids` the response begins; the rest is what `forward` takes.
        """
        cache = kwargs.get(_CACHE)
        response = input_ids[:, prompt_length:]

        def behind(prompts: Named, generated: Tensor) -> dict[str, Tensor]:
            rows = {name: prompt.to(generated) for name, prompt in (prompts or {}).items()}
            copies = {name: len(generated) // len(prompt) for name, prompt in rows.items()}  # as many as beams
            return {name: torch.cat([rows[name].repeat_interleave(copies[name], 0), generated], 1) for name in rows}

        ids = behind(kwargs.get("specialist_input_ids"), response)
        masks = behind(kwargs.get("specialist_attention_mask"), torch.ones_like(response))
        views = dict(zip(self.names, self._views(input_ids, kwargs.get("attention_mask"), ids, masks), strict=True))
        past = [0] * len(views) if cache is None else [own.get_seq_length() for own in cache.specialists]
        return {
            "specialist_input_ids": {n: own[:, seen:] for (n, (own, _)), seen in zip(views.items(), past, strict=True)},
            "specialist_attention_mask": {name: mask for name, (_, mask) in views.items() if mask is not None},
            _CACHE: cache,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep", 1),
        }

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, config: MegafuserConfig | None = None, **kwargs: Any
    ) -> "MegafuserForCausalLM":
        """Loads a directory of this layout, or a repository of the hub; the specialists run no code of their own.

        `revision`, `token`, `cache_dir`, … are for the hub; `dtype` (by default as stored), `device_map` (by
        specialist's name, or one for all) and whatever else loads a model go to every specialist.
        """
        hub = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        hub_arguments = {name: kwargs.pop(name) for name in hub if name in kwargs}
        directory = Path(pretrained_model_name_or_path)
        if not directory.is_dir():
            directory = Path(snapshot_download(str(pretrained_model_name_or_path), **hub_arguments))
        config = config or MegafuserConfig.from_pretrained(directory)
        kwargs.setdefault("attn_implementation", config._attn_implementation)
        names = [specialist["name"] for specialist in config.specialists]
        places = kwargs.pop("device_map", None)
        if not (isinstance(places, Mapping) and set(places) == set(names)):
            places = dict.fromkeys(names, places)
        kwargs["trust_remote_code"] = False
        specialists = [
            AutoModelForCausalLM.from_pretrained(directory / "specialists" / name, device_map=places[name], **kwargs)
            for name in names
        ]
        model = cls(config, specialists)
        stored = {_gate_key(key, names): value for key, value in load_file(directory / "gate.safetensors").items()}
        model.gate.load_state_dict(stored, assign=True)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype  # None for "auto": as stored
        model.gate.to(device=specialists[0].device, dtype=dtype)
        model.generation_config = GenerationConfig.from_pretrained(directory)
        model.name_or_path = config.name_or_path = str(directory.resolve())
        evaluating: MegafuserForCausalLM = model.eval()
        return evaluating

    def save_pretrained(
        self,
        save_directory: str | Path,
        max_shard_size: str | int = "5GB",
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Writes the same layout again, with tokenizers and all else that is where the model was loaded from.

        Args:
            save_directory: where to; it is made.
            max_shard_size: of a file of weights.
            state_dict: all weights by their names in this model, as transformers' `Trainer` gathers them where each
                process has a part only; None for the model's own.
            is_main_process: False writes nothing, since another process does.
            kwargs: what else transformers' models take, as far as it changes nothing here: `safe_serialization=True`,
                `push_to_hub=False`, ….

        Raises:
            ValueError: an argument asks for what is not done here, or `state_dict` lacks weights or has others.
        """
        for name, value in kwargs.items():
            done = name in _SAVING_DOES and value in (None, _SAVING_DOES[name])
            if not done and name not in _SAVING_IGNORES:
                raise ValueError(
                    f"save_pretrained takes no {name}={value!r}: it writes safetensors to a directory; leave it out"
                )
        if not is_main_process:
            return
        states: list[dict[str, Tensor] | None] = [None] * len(self.names)
        gate = self.gate.state_dict() if state_dict is None else _part(state_dict, "gate.")
        if state_dict is not None:
            states = [_part(state_dict, f"specialists.{k}.") for k in range(len(self.names))]
            if len(state_dict) != len(gate) + sum(map(len, states)):
                raise ValueError(
                    "state_dict has weights that are no specialist's and not the gate's; give those of the whole model"
                )
        target = Path(save_directory).resolve()
        if self.name_or_path and Path(self.name_or_path).resolve() != target:
            _copy_what_is_beside_weights(Path(self.name_or_path), target, self.names)
        for name, specialist, state in zip(self.names, self.specialists, states, strict=True):
            place = target / "specialists" / name
            specialist.save_pretrained(place, state_dict=state, max_shard_size=max_shard_size)
        gate = {_gate_key(key, self.names, stored=True): value.contiguous() for key, value in gate.items()}
        save_file(gate, target / "gate.safetensors", metadata={"format": "pt"})
        shutil.copyfile(inspect.getfile(type(self)), target / "modeling_megafuser.py")
        classes = {"AutoConfig": MegafuserConfig, "AutoModelForCausalLM": MegafuserForCausalLM}
        self.config.auto_map = {auto: f"modeling_megafuser.{own.__name__}" for auto, own in classes.items()}
        self.config.save_pretrained(target)
        self.generation_config.save_pretrained(target)


def _copy_what_is_beside_weights(source: Path, target: Path, names: Sequence[str]) -> None:
    """Tokenizers, templates and texts: no other directories, of which `target` may be one.

    Raises:
        FileNotFoundError: the model's own directory is gone, and they with it.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source}, from which the model was loaded, is gone; its tokenizers were there")
    for own in (".", *(f"specialists/{name}" for name in names)):
        for place in (own, f"{own}/additional_chat_templates"):
            for file in (source / place).iterdir() if (source / place).is_dir() else ():
                if file.is_file() and not file.name.endswith((".safetensors", ".index.json")):
                    (target / place).mkdir(parents=True, exist_ok=True)
                    shutil.copy2(file, target / place / file.name)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of a part of the model, by their names in it.

    Raises:
        ValueError: there are none.
    """
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not part:
        raise ValueError(f"state_dict has no weights {prefix}…; give those of the whole model, or none")
    return part


def _gate_key(key: str, names: Sequence[str], stored: bool = False) -> str:
    """`project.NAME.weight`, as the gate's file has it, is `project.K.weight` in the module; and back to `stored`."""
    pairs = {f"project.{name}.weight": f"project.{k}.weight" for k, name in enumerate(names)}
    return ({own: name for name, own in pairs.items()} if stored else pairs).get(key, key)
