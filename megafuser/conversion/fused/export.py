"""A run's checkpoint as one Hugging Face directory: specialists, gate, the code that joins them, and a model card.

Specialists are streamed from where their weights are; only the gate is held in memory. What the directory computes is
`conversion.fused.modeling_megafuser`.
"""

import importlib.resources
import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import Manifest, gate_config
from megafuser.checkpoint.specialist_sources import SpecialistSource, sources_from_checkpoint
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.config.load import load_config
from megafuser.config.run_directory import CONFIG, WEIGHTS
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import TemplateConfig
from megafuser.conversion.carried_files import carried_files
from megafuser.conversion.fused.model_card import model_card
from megafuser.conversion.mcore_to_hf import export_huggingface_files, export_weights, verify_export
from megafuser.conversion.options import PhaseProgress, Report
from megafuser.conversion.source_rows import equal_bits, refuse_overflow
from megafuser.conversion.stored_specialist import StoredSpecialist, find_specialist
from megafuser.data.templates import get_template
from megafuser.data.tokenization import load_tokenizers
from megafuser.errors import UserError
from megafuser.fusion.gate_shapes import gate_shapes
from megafuser.runtime.logs import quiet_transformers
from megafuser.runtime.output_checks import check_disk

MODELING = "modeling_megafuser.py"
GATE = "gate.safetensors"
_GATE_PREFIX = "gate."
# What AutoTokenizer reads, whatever the kind of tokenizer.
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
)


def export_fused(
    checkpoint: Path,
    manifest: Manifest,
    out: Path,
    *,
    dtype: torch.dtype | None,
    verify: str,
    progress: PhaseProgress = lambda phase, done, total: None,
    report: Report = lambda line: None,
) -> None:
    """Writes the whole fused model of a warm-up or joint checkpoint.

    Args:
        checkpoint: the checkpoint; it is only read.
        manifest: its manifest.
        out: an existing, empty directory.
        dtype: converts all weights; None for the dtypes they are stored in.
        verify: `weights` compares what was written with the checkpoint, bitwise; `logits` also compares the fp32 logits
            of both; `none` does neither.
        progress: told how far it is.
        report: told what was verified, a line at a time.

    Raises:
        UserError: the checkpoint is damaged or a specialist that it refers to is gone, the disk is too full, or the
            result does not equal the checkpoint.
    """
    sources = sources_from_checkpoint(checkpoint, manifest)
    if verify != "none":
        referenced = [source.checkpoint for source in sources] if manifest.kind == "warmup" else []
        for directory in (checkpoint, *referenced):
            refuse_damaged([directory])
    config = load_config(checkpoint / CONFIG)
    specialists = {source.name: find_specialist(checkpoint, manifest, source.name) for source in sources}
    gate = _read_gate(checkpoint / WEIGHTS, manifest, sources, dtype)
    check_disk(out, sum(stored.nbytes(dtype) for stored in specialists.values()))

    _write_specialists(specialists, out, dtype, progress)
    save_file(gate, out / GATE, metadata={"format": "pt"})
    code = importlib.resources.files("megafuser.conversion.fused").joinpath(MODELING)
    (out / MODELING).write_text(code.read_text("utf-8"), "utf-8")
    _write_configuration(out, manifest, config, sources)
    (out / "README.md").write_text(model_card(manifest, config, sources, dtype), "utf-8")

    if verify != "none":
        rounded = "" if dtype is None else f", after rounding to {str(dtype).removeprefix('torch.')}"
        count = _verify_weights(specialists, gate, out, dtype, progress)
        report(f"weights: all {count} tensors are equal bit by bit{rounded}")
    if verify == "logits":
        # imported here: it brings megatron-core's models along, which takes seconds
        from megafuser.conversion.fused.logits import compare_fused_logits

        line = compare_fused_logits(
            out,
            specialists,
            gate,
            temperature=gate_config(manifest).temperature,
            shared_vocabulary=manifest.run["shared_vocabulary"],
            rounded_to=dtype,
        )
        report(line)


def prompt_template(template: str | TemplateConfig) -> str | None:
    """A template as Jinja text over `instruction` and `system` (empty where there is none), for a first turn.

    Returns:
        None for `hf`, which is the chat template that the tokenizer brings along.
    """
    if isinstance(template, TemplateConfig):
        return template.prompt
    if template == "hf":
        return None
    form, instruction, system = get_template(template, None), "{{ instruction }}", "{{ system }}"
    with_system, without = form.turn(instruction, system, True), form.turn(instruction, None, True)
    return (
        with_system if with_system == without else f"{{% if system %}}{with_system}{{% else %}}{without}{{% endif %}}"
    )


def _write_specialists(
    specialists: Mapping[str, StoredSpecialist], out: Path, dtype: torch.dtype | None, progress: PhaseProgress
) -> None:
    advance = _Advance("converting", specialists, dtype, progress)
    for name, stored in specialists.items():
        directory = out / "specialists" / name
        directory.mkdir(parents=True)
        export_weights(stored, directory, dtype, advance)
        export_huggingface_files(stored, directory, dtype)
        advance.finished(stored)


def _verify_weights(
    specialists: Mapping[str, StoredSpecialist],
    gate: Mapping[str, torch.Tensor],
    out: Path,
    dtype: torch.dtype | None,
    progress: PhaseProgress,
) -> int:
    """Reads everything back; returns the number of tensors."""
    written = load_file(out / GATE)
    if written.keys() != gate.keys() or not all(equal_bits(written[key], value) for key, value in gate.items()):
        raise UserError(f"{out / GATE} was not written as it was read; check the disk and export again")
    count, advance = len(gate), _Advance("verifying", specialists, dtype, progress)
    for name, stored in specialists.items():
        count += verify_export(stored, out / "specialists" / name, dtype, advance)
        advance.finished(stored)
    return count


class _Advance:
    """One progress over all specialists, each of which tells its own."""

    def __init__(
        self,
        phase: str,
        specialists: Mapping[str, StoredSpecialist],
        dtype: torch.dtype | None,
        progress: PhaseProgress,
    ) -> None:
        self._phase, self._dtype, self._progress = phase, dtype, progress
        self._before, self._total = 0, sum(stored.nbytes(dtype) for stored in specialists.values())

    def __call__(self, done: int) -> None:
        self._progress(self._phase, self._before + done, self._total)

    def finished(self, stored: StoredSpecialist) -> None:
        self._before += stored.nbytes(self._dtype)


def _read_gate(
    weights: Path, manifest: Manifest, sources: list[SpecialistSource], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """The gate's tensors by the names of `gate.safetensors`; refuses others than the manifest implies."""
    expected = gate_shapes([source.card.hidden_size for source in sources], gate_config(manifest).hidden_size)
    for index, source in enumerate(sources):
        # projections have their specialists' names in checkpoints
        if shape := expected.pop(f"project.{index}.weight", None):
            expected[f"project.{source.name}.weight"] = shape
    with StreamedReader(weights) as stored:
        found = {
            key.removeprefix(_GATE_PREFIX): shape
            for key, shape in stored.shapes.items()
            if key.startswith(_GATE_PREFIX)
        }
        if found != expected:
            raise UserError(f"{weights} does not have the gate that its manifest describes; use another checkpoint")
        tensors = {key: stored.rows(_GATE_PREFIX + key, None, 0, shape[0]) for key, shape in expected.items()}
    converted = {key: value.to(dtype or value.dtype, copy=True).contiguous() for key, value in tensors.items()}
    for key, value in converted.items():
        refuse_overflow(_GATE_PREFIX + key, tensors[key], value)
    return converted


def _write_configuration(out: Path, manifest: Manifest, config: RunConfig, sources: list[SpecialistSource]) -> None:
    """config.json, generation_config.json, and the first specialist's tokenizer."""
    first, shared, end = sources[0], manifest.run["shared_vocabulary"], manifest.run["end_id"]
    tokenizer = load_tokenizers({first.name: first.huggingface})[first.name]
    # What finished samples of a batch are filled with is read by every specialist, so all must have it.
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None and pad < shared else end
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": pad}
    tokens = {key: value for key, value in tokens.items() if value is not None}
    dtypes = {_dtype_name(out / "specialists" / source.name) for source in sources}
    templates = {specialist.name: specialist.template for specialist in config.specialists}
    values: dict[str, Any] = {
        "architectures": ["MegafuserForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{Path(MODELING).stem}.MegafuserConfig",
            "AutoModelForCausalLM": f"{Path(MODELING).stem}.MegafuserForCausalLM",
        },
        "model_type": "megafuser",
        **({"dtype": dtypes.pop()} if len(dtypes) == 1 else {}),
        "vocab_size": shared,
        "max_position_embeddings": min(source.card.max_position_embeddings for source in sources),
        "gate_hidden_size": gate_config(manifest).hidden_size,
        "gate_temperature": gate_config(manifest).temperature,
        "specialists": [
            {
                "name": source.name,
                "hidden_size": source.card.hidden_size,
                "template": {
                    "name": template if isinstance(template := templates[source.name], str) else "custom",
                    "prompt": prompt_template(template),
                },
            }
            for source in sources
        ],
        **tokens,
    }
    _write_json(out / "config.json", values)
    _write_json(out / "generation_config.json", tokens)
    _write_tokenizer(out, first, tokenizer)


def _write_tokenizer(out: Path, source: SpecialistSource, tokenizer: Any) -> None:
    for path in carried_files(source.huggingface):
        name = path.relative_to(source.huggingface)
        if len(name.parts) > 1 or any(fnmatchcase(name.name.lower(), pattern) for pattern in _TOKENIZER_FILES):
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, out / name)
    with quiet_transformers():  # about a type of model that transformers does not know, which is as it should be
        loaded = load_tokenizers({source.name: out})[source.name]
    if type(loaded) is not type(tokenizer):
        # Some tokenizers are known by the model's type alone, and ours is not theirs.
        path = out / "tokenizer_config.json"
        values = json.loads(path.read_text("utf-8")) if path.exists() else {}
        _write_json(path, values | {"tokenizer_class": type(tokenizer).__name__})


def _dtype_name(specialist: Path) -> str | None:
    values = json.loads((specialist / "config.json").read_text("utf-8"))
    name: str | None = values.get("dtype", values.get("torch_dtype"))
    return name


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
