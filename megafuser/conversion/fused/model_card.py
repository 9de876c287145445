"""The README.md of an exported fusion: how it was made, how it is used. It says what the checkpoint says, no more.

The rest of the directory is written by `conversion.fused.export`.
"""

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import torch
import yaml

from megafuser import __version__
from megafuser.checkpoint.manifest import Manifest, gate_config
from megafuser.checkpoint.manifest_content import Counts
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.config.schema import RunConfig


@dataclass(frozen=True)
class Stage:
    """One stage of training, as the card tells it."""

    title: str
    step: int
    counts: Counts


def model_card(
    manifest: Manifest, config: RunConfig, sources: Sequence[SpecialistSource], dtype: torch.dtype | None = None
) -> str:
    """Renders the card.

    Args:
        manifest: of the checkpoint that is exported.
        config: of its run.
        sources: its specialists.
        dtype: what all weights were converted to; None where they are as stored.

    Returns:
        Markdown behind YAML that the Hugging Face hub reads.
    """
    repositories = [source.origin["repository"] for source in sources if source.origin["repository"]]
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": list(dict.fromkeys(repositories))} if repositories else {}),
        "tags": ["megafuser", "model-fusion"],
    }
    text = importlib.resources.files("megafuser.conversion.fused").joinpath("model_card.md.j2").read_text("utf-8")
    environment = jinja2.Environment(  # Markdown, not HTML: there is nothing to escape
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    templates = {specialist.name: specialist.template for specialist in config.specialists}
    return environment.from_string(text).render(
        front=yaml.safe_dump(front, sort_keys=False),
        version=__version__,
        specialists=[
            {
                "name": source.name,
                "origin": _origin(source),
                "template": template if isinstance(template := templates[source.name], str) else "custom",
                "parameters": f"{source.card.parameter_count():,}",
            }
            for source in sources
        ],
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        joint=manifest.kind == "joint",
        stages=_stages(manifest),
        shared=manifest.run["shared_vocabulary"],
        gate=gate_config(manifest).hidden_size,
        temperature=gate_config(manifest).temperature,
        projections=len({source.card.hidden_size for source in sources}) > 1,
        chat="hf" in templates.values(),
    )


def _origin(source: SpecialistSource) -> str:
    """What a specialist was before the fusion: a repository's commit, or a directory's name and contents."""
    origin = source.origin
    if origin["repository"]:
        return f"{origin['repository']}, revision `{origin['revision']}`"
    return f"a directory `{origin['name']}`, content `{source.content_hash}`"


def _stages(manifest: Manifest) -> list[Stage]:
    content = manifest.run
    last = Stage("Joint training" if manifest.kind == "joint" else "Warm-up", content["step"], content["counts"])
    stages = [Stage("Warm-up", **content["warmup"])] if "warmup" in content else []
    stages += [Stage("Earlier joint training", **earlier) for earlier in content.get("earlier_joint", [])]
    return [*stages, last]
