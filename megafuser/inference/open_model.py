"""From a checkpoint to a model that answers: weights, tokenizers, templates, process groups, caches.

The model itself is built by `training.session`, as for training.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import Manifest
from megafuser.checkpoint.read_lock import reading
from megafuser.checkpoint.specialist_sources import SpecialistSource, read_run_checkpoint, sources_from_checkpoint
from megafuser.config.load import overrides_of
from megafuser.config.run_directory import checkpoint_config
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.inference.engine import Engine
from megafuser.inference.prompts import PromptEncoder
from megafuser.inference.spread import Layout, for_decoding, spread
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import detect_world
from megafuser.training.checkpoint_contents import load_run_weights
from megafuser.training.session import prepare, reading_config

logger = logging.getLogger(__name__)

_GIB = 2**30
_CPU_CACHE = 1 * _GIB
_CUDA_SHARE = 0.8  # of what the weights leave


@dataclass(frozen=True)
class Opening:
    """How to open a checkpoint.

    Attributes:
        checkpoint: a step's, a stage's or a run's directory.
        tensor: tensor-parallel size; None, as `pipeline`: see `spread`.
        pipeline: pipeline stages.
        overrides: of the checkpoint's configuration, dotted.
        cache_gib: memory of keys and values on each rank; None: a gibibyte on the CPU, on a GPU most of what is left.
        force: `uniform`, or a specialist's name: weights for every token in the gate's place.
    """

    checkpoint: str
    tensor: int | None = None
    pipeline: int | None = None
    overrides: Sequence[str] = ()
    cache_gib: float | None = None
    force: str | None = None


@dataclass(frozen=True)
class FusedLanguageModel:
    """An open checkpoint, on every rank.

    Attributes:
        name: what to call it: RUN/STAGE/STEP.
        specialists: names, in order.
        engine: runs steps.
        prompts: makes ids.
        tokenizer: the first specialist's, for responses.
        end_id: the id that ends a response.
        shared_vocabulary: number of ids that are scored.
        limit: positions of the longest sequence.
        config: as the checkpoint has it, with the overrides.
    """

    name: str
    specialists: tuple[str, ...]
    engine: Engine
    prompts: PromptEncoder
    tokenizer: Any
    end_id: int
    shared_vocabulary: int
    limit: int
    config: RunConfig


@contextmanager
def open_checkpoint(opening: Opening) -> Iterator[FusedLanguageModel]:
    """Opens a checkpoint of either stage; every rank calls it.

    Raises:
        UserError: there is none, it is damaged, or it does not fit the layout or the machine.
    """
    directory, manifest = read_run_checkpoint(opening.checkpoint)
    sources = sources_from_checkpoint(directory, manifest)
    forced = _forced_weights(opening.force, sources)
    config = _config(opening, manifest, directory, sources)
    session = prepare(config, sources, (directory, manifest))
    limit = min(config.data.sequence_length, *(source.card.max_position_embeddings for source in sources))
    prompts = PromptEncoder(
        session.tokenizers,
        [specialist.template for specialist in config.specialists],
        shared_vocabulary=session.shared_vocabulary,
        end_id=session.end_id,
        rows=[source.card.vocab_size for source in sources],
    )
    with distributed(config.parallel, seed=config.seed, device=session.device, world=session.world):
        with reading(directory):
            refuse_damaged([directory])
            (model,) = session.build_model(cached=True)
            load_run_weights(directory, manifest, [model], sources)
        cache_bytes = _cache_bytes(opening.cache_gib, session.device)
        engine = Engine(model, limit=limit, cache_bytes=cache_bytes, device=session.device, forced=forced)
        logger.info("caches: %d positions, %.2f GiB on each rank", engine.extents.capacity, engine.cache_bytes / _GIB)
        yield FusedLanguageModel(
            name="/".join(directory.resolve().parts[-3:]),
            specialists=tuple(session.specialist_names),
            engine=engine,
            prompts=prompts,
            tokenizer=prompts.tokenizer,
            end_id=session.end_id,
            shared_vocabulary=session.shared_vocabulary,
            limit=limit,
            config=config,
        )


def _config(opening: Opening, manifest: Manifest, directory: Path, sources: Sequence[SpecialistSource]) -> RunConfig:
    """The run's configuration without what is training's, at a layout for answering."""
    for section, instead in (("gate", "the gate is the checkpoint's"), ("parallel", "use --tensor and --pipeline")):
        for override in overrides_of(section, opening.overrides):
            raise UserError(f"override {override!r} would change nothing here: {instead}; leave it out")
    config = reading_config(checkpoint_config(directory, opening.overrides), manifest)
    config = dataclasses.replace(config, parallel=for_decoding(config.parallel))
    cards = {source.name: source.card for source in sources}
    parallel = spread(config, cards, detect_world(), Layout(opening.tensor, opening.pipeline))
    return dataclasses.replace(config, parallel=parallel)


def _forced_weights(force: str | None, sources: Sequence[SpecialistSource]) -> list[float] | None:
    names = [source.name for source in sources]
    if force is None:
        return None
    if force == "uniform" and force not in names:
        return [1 / len(names)] * len(names)
    if force not in names:
        raise UserError(f"no specialist {force!r}; choose uniform or one of {', '.join(names)}")
    return [float(name == force) for name in names]


def _cache_bytes(cache_gib: float | None, device: torch.device) -> int:
    if cache_gib is not None:
        return int(cache_gib * _GIB)
    if device.type == "cpu":
        return _CPU_CACHE
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _CUDA_SHARE)
