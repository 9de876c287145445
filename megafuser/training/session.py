"""What every command on a fused model sets up: device and backend, specialists, vocabulary, data, the model.

These are both stages and their trials, the preflight, resharding, the report, and what answers: `generate`, `serve`,
`evaluate`.

Everything that a user can get wrong is looked at in `prepare`, before process groups are made or weights are loaded.
What a stage starts from is `training.stage_start`.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megafuser.checkpoint.manifest import Manifest, gate_config
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.schema import RunConfig
from megafuser.data.cache.loading import load_data
from megafuser.data.shared_vocabulary import end_id, shared_vocabulary
from megafuser.data.tokenization import load_tokenizers
from megafuser.data.tokenized import TokenizedDomain
from megafuser.errors import UserError
from megafuser.fusion.model import FusedModel, build_fused_model
from megafuser.runtime.device import check_fp8, select_backend, select_device
from megafuser.runtime.kernels import check_apex
from megafuser.runtime.world import World, check_world_size, detect_world
from megafuser.specialist.layout_checks import check_layout
from megafuser.training.optimizer import check_optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """A checked configuration and what follows from it; no weights yet.

    Attributes:
        config: the run's configuration.
        world: this process's place.
        device: this rank's device.
        backend: `transformer_engine` or `torch`.
        sources: the specialists, in the configuration's order.
        tokenizers: by specialist.
        tokenizer_files: by specialist and relative path; kept, since the checkpoint they came from may be removed.
        shared_vocabulary: number of ids that are scored.
        end_id: the id that ends a response.
    """

    config: RunConfig
    world: World
    device: torch.device
    backend: str
    sources: list[SpecialistSource]
    tokenizers: Mapping[str, Any]
    tokenizer_files: Mapping[str, Mapping[str, bytes]]
    shared_vocabulary: int
    end_id: int

    @property
    def device_name(self) -> str:
        """What the driver calls the GPU, or `cpu`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def specialist_names(self) -> list[str]:
        """The specialists' names, in order."""
        return [source.name for source in self.sources]

    @property
    def domain_names(self) -> list[str]:
        """The domains' names, in order."""
        return list(self.config.data.domains)

    def load_data(
        self, *splits: str, expected: Mapping[str, Mapping[str, str]] | None = None
    ) -> list[list[TokenizedDomain]]:
        """The tokenized samples of every domain, for each of `train` and `valid` that is asked for.

        Args:
            splits: of `train` and `valid`.
            expected: domain → split → key of the samples that a checkpoint was made with.

        Raises:
            UserError: a data file is missing or wrong, nothing is left of a domain, or the samples are not the expected
                ones; nothing is written then.
        """
        return load_data(
            self.config,
            self.tokenizers,
            {source.name: source.card.vocab_size for source in self.sources},
            {source.name: source.card.max_position_embeddings for source in self.sources},
            splits,
            expected,
        )

    def build_model(self, *, trained: Collection[str] = (), cached: bool = False) -> list[FusedModel]:
        """This rank's chunks of the fused model on its device, in order; needs megatron-core's parallel state.

        Args:
            trained: names of the specialists that are to train. Without any there is no backward, which could compute
                activations again.
            cached: whether responses are to be generated, with keys and values in caches.
        """
        virtual = self.config.parallel.virtual_pipeline
        memory = self.config.memory if trained else dataclasses.replace(self.config.memory, recompute="none")
        return [
            build_fused_model(
                {source.name: source.card for source in self.sources},
                parallel=self.config.parallel,
                precision=self.config.precision,
                backend=self.backend,
                gate=self.config.gate,
                shared_vocabulary=self.shared_vocabulary,
                seed=self.config.seed,
                memory=memory,
                vp_stage=vp_stage,
                cached=cached,
                trained=trained,
            ).to(self.device)
            for vp_stage in (range(virtual) if virtual > 1 else [None])
        ]


def reading_config(config: RunConfig, manifest: Manifest) -> RunConfig:
    """The configuration for a checkpoint's model that is read and not trained: what is training's is left out.

    That is FP8, so that the model computes in its `dtype`; recomputation, which does not suit every layout; and the
    optimizer, which is never built.

    Args:
        config: the run's configuration.
        manifest: the checkpoint's, whose gate it is.
    """
    return dataclasses.replace(
        config,
        gate=gate_config(manifest),
        precision=dataclasses.replace(config.precision, fp8=None, fp8_first_last_bf16=False),
        memory=dataclasses.replace(config.memory, recompute="none", recompute_layers=1),
        optimizer=OptimizerConfig(),
    )


def prepare(
    config: RunConfig, sources: list[SpecialistSource], checkpoint: tuple[Path, Manifest] | None = None
) -> Session:
    """Checks a configuration against the world, the specialists and a checkpoint; loads tokenizers only.

    Args:
        config: the run's configuration.
        sources: the specialists.
        checkpoint: the checkpoint whose weights are to be loaded, if any, and its manifest.

    Raises:
        UserError: the layout does not fit the world or a specialist, the device or backend is not there, or the
            vocabularies do not agree with each other or with the checkpoint's.
    """
    world = detect_world()
    device = select_device(config.device, world.local_rank)
    if device.type == "cuda":
        check_apex()
    backend = select_backend(config.backend, device)
    if config.precision.fp8 and backend != "transformer_engine":
        raise UserError(
            f"precision.fp8: {config.precision.fp8} needs backend transformer_engine; set precision.fp8=null"
        )
    if config.precision.fp8:
        check_fp8(config.precision.fp8)
    check_world_size(config.parallel, world.size)
    check_optimizer(config.optimizer, device)
    check_layout({source.name: source.card for source in sources}, config, world.size)
    tokenizers = load_tokenizers({source.name: source.huggingface for source in sources})
    shared = shared_vocabulary(tokenizers, {source.name: source.card.vocab_size for source in sources})
    session = Session(
        config=config,
        world=world,
        device=device,
        backend=backend,
        sources=sources,
        tokenizers=tokenizers,
        tokenizer_files={source.name: source.tokenizer_files() for source in sources},
        shared_vocabulary=shared,
        end_id=end_id(tokenizers, config.data.end_token, shared),
    )
    if checkpoint is not None:
        _check_vocabulary(session, *checkpoint)
    logger.info("%s", _summary(session))
    return session


def _check_vocabulary(session: Session, directory: Path, manifest: Manifest) -> None:
    """Both follow from tokenizers that may have been replaced, and say what is scored and what ends a response."""
    for what, own, theirs, remedy in (
        ("shared vocabulary", session.shared_vocabulary, manifest.run["shared_vocabulary"], "tokenizers"),
        ("end id", session.end_id, manifest.run["end_id"], "data.end_token and tokenizers"),
    ):
        if own != theirs:
            raise UserError(
                f"{directory} was trained with {what} {theirs}, but this configuration gives {own}; "
                f"use the run's own {remedy}"
            )


def _summary(session: Session) -> str:
    parameters = sum(source.card.parameter_count() for source in session.sources)
    parallel = session.config.parallel
    data_parallel = session.world.size // (parallel.tensor * parallel.pipeline)
    return (
        f"{len(session.sources)} specialists, {parameters / 1e6:.1f}M parameters, "
        f"{session.shared_vocabulary} shared ids; "
        f"TP {parallel.tensor} x PP {parallel.pipeline} x DP {data_parallel} on {session.device.type}, "
        f"{session.config.precision.dtype}, backend {session.backend}"
    )
