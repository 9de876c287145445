"""The fused model: K specialists side by side through the pipeline; the gate and the mixture loss in the last stage.

Glossary: S row width, K specialists, h_k hidden sizes, T response tokens of a row, TP tensor-parallel size.

A specialist's piece is built by `specialist.build`; the whole is run by `training.pipeline` and `inference.engine`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.gate import GateConfig
from megafuser.fusion.gate import Gate
from megafuser.fusion.mixture_loss import MixtureLoss, mixture_cross_entropy
from megafuser.fusion.row import PackedRow, SpecialistRow, Views
from megafuser.specialist.build import Specialist, build_specialist
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.padded_vocabulary import padded_vocab_size
from megafuser.specialist.transformer_config import DTYPES, transformer_config


class FusedModel(MegatronModule):
    """A chunk of all K specialists, one of this rank's, and in the pipeline's last chunk the gate.

    A rank has one chunk, or several where pipeline schedules interleave.

    Between stages the K streams travel as one tensor, concatenated on the hidden dimension; the configuration that
    megatron-core's schedules and finalization read says so with the sum of the hidden sizes.
    """

    model_type = ModelType.encoder_or_decoder
    # Tied specialists are reduced one by one (training.gradients); megatron-core's own reduction knows one model only.
    share_embeddings_and_output_weights = False

    def __init__(
        self,
        config: TransformerConfig,
        specialists: Mapping[str, Specialist],
        gate: Gate | None,
        shared_vocabulary: int,
        loss_chunk_bytes: int,
        vp_stage: int | None = None,
    ) -> None:
        """Joins the pieces.

        Args:
            config: the fused configuration, see `fused_config`.
            specialists: by name, in the configuration's order.
            gate: in the last chunk only.
            shared_vocabulary: number of ids that are scored.
            loss_chunk_bytes: most memory that the mixture loss takes for the logits of a chunk of tokens.
            vp_stage: which of this rank's chunks, where it has several.
        """
        super().__init__(config)
        self.names = tuple(specialists)
        # A ModuleList, typed by what it holds.
        self.specialists: Sequence[Specialist] = cast(Any, torch.nn.ModuleList(specialists.values()))
        self.hidden_sizes = [specialist.config.hidden_size for specialist in specialists.values()]
        self.gate = gate
        self.shared_vocabulary = shared_vocabulary
        self.loss_chunk_bytes = loss_chunk_bytes
        self.vp_stage = vp_stage
        # of each specialist; see `set_trained`
        self.trained = [True] * len(self.names)
        self._received: torch.Tensor | None = None
        self.pre_process = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        self.post_process = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)

    def set_trained(self, trained: Sequence[bool]) -> None:
        """Says of each specialist whether it trains; one that does not is frozen and needs no backward."""
        self.trained = list(trained)
        for specialist, trains in zip(self.specialists, self.trained, strict=True):
            specialist.requires_grad_(trains)

    def set_input_tensor(self, input_tensor: torch.Tensor | Sequence[torch.Tensor | None] | None) -> None:
        """Takes what the stage before sent, [S, 1, Σ h_k] (S / TP under sequence parallelism), or None on the first."""
        self._received = input_tensor if isinstance(input_tensor, torch.Tensor | None) else input_tensor[0]

    def forward(self, row: PackedRow, with_diagnostics: bool = False) -> torch.Tensor | MixtureLoss:
        """Runs this stage on one packed row.

        Args:
            row: the row as every specialist sees it.
            with_diagnostics: see `mixture_cross_entropy`; only the last stage reads it.

        Returns:
            The K streams as one tensor, [S, 1, Σ h_k] (S / TP under sequence parallelism), or the loss of the row's T
            response tokens on the last stage.
        """
        if not self.post_process:
            return self.handed_on(row)
        return self.loss(self.streams(row), row, with_diagnostics)

    def handed_on(self, row: Views) -> torch.Tensor:
        """What a stage before the last makes of a row for the next one, [S, 1, Σ h_k] (S / TP under SP)."""
        return torch.cat([self._to_length(stream, row.width) for stream in self.streams(row)], dim=-1)

    def streams(self, row: Views) -> list[torch.Tensor]:
        """Per specialist, what its piece of this stage makes of the row, [S_k, 1, h_k]."""
        if self._received is not None:
            received = self._received.split(self.hidden_sizes, dim=-1)
            for specialist, stream, view in zip(self.specialists, received, row.specialists, strict=True):
                specialist.set_input_tensor(self._to_length(stream, view.input_ids.shape[1]))
        return [
            self._stream(specialist, view, trained)
            for specialist, view, trained in zip(self.specialists, row.specialists, self.trained, strict=True)
        ]

    def _stream(self, specialist: Specialist, view: SpecialistRow, trained: bool) -> torch.Tensor:
        """One specialist's stream; a frozen one keeps no activations, and no gradient goes through it."""
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            stream = specialist(view.input_ids, view.position_ids, None, packed_seq_params=view.packed())
        handed_on: torch.Tensor = stream if trained else stream.detach()
        return handed_on

    def _to_length(self, stream: torch.Tensor, width: int) -> torch.Tensor:
        """Cuts a stream to a width in tokens, or fills it up with zeros: between stages all are of one length."""
        length = width // self.config.tensor_model_parallel_size if self.config.sequence_parallel else width
        if stream.shape[0] < length:
            return torch.nn.functional.pad(stream, (0, 0, 0, 0, 0, length - stream.shape[0]))
        return stream[:length]

    def loss(self, streams: Sequence[torch.Tensor], row: PackedRow, with_diagnostics: bool) -> MixtureLoss:
        """The last stage's end: response positions, gate, mixture loss. Prompts never meet gate or head."""
        assert self.gate is not None, "the gate lives on the last pipeline stage"
        hidden = self._at_responses(streams, row)
        return mixture_cross_entropy(
            hidden,
            [specialist.head_weight() for specialist in self.specialists],
            self.gate(hidden),
            row.targets,
            shared_vocabulary=self.shared_vocabulary,
            chunk_bytes=self.loss_chunk_bytes,
            with_diagnostics=with_diagnostics,
        )

    def gate_weights(self, row: PackedRow) -> torch.Tensor:
        """The last stage on one packed row, as far as the gate: the weights of its response tokens, [T, K] float32."""
        assert self.gate is not None, "the gate lives on the last pipeline stage"
        weights: torch.Tensor = self.gate(self.response_states(row))
        return weights

    def response_states(self, row: Views) -> list[torch.Tensor]:
        """The last stage on one row, as far as the gate: the states that predict the response tokens, K times [T, h_k].

        What decoding shares with training; see `megafuser.inference`.
        """
        return self._at_responses(self.streams(row), row)

    def _at_responses(self, streams: Sequence[torch.Tensor], row: Views) -> list[torch.Tensor]:
        """Per specialist, the hidden states that predict the response tokens, [T, h_k]."""
        return [
            self._whole(stream)[view.response_positions, 0]
            for stream, view in zip(streams, row.specialists, strict=True)
        ]

    def _whole(self, stream: torch.Tensor) -> torch.Tensor:
        """All S positions on every rank; the gradient that comes back is whole on every rank, so it is only split."""
        if not self.config.sequence_parallel:
            return stream
        whole: torch.Tensor = gather_from_sequence_parallel_region(stream, tensor_parallel_output_grad=False)
        return whole

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Keys `specialists.NAME.…` (as in a specialist's own checkpoint) and `gate.…`; loads at any layout.

        Tensors only: what else megatron-core would save (`_extra_state` of its layers) are pickled objects.
        """
        state: dict[str, Any] = {}
        for name, specialist in zip(self.names, self.specialists, strict=True):
            own = specialist.sharded_state_dict(f"{prefix}specialists.{name}.", sharded_offsets, metadata)
            state.update((key, value) for key, value in own.items() if not isinstance(value, ShardedObject))
        state.update(self.gate_sharded_state_dict(prefix))
        return state

    def gate_sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """The gate's part of `sharded_state_dict`: all that a warm-up checkpoint holds. Empty before the last stage."""
        if self.gate is None:
            return {}
        tensors = {self._gate_key(name): value for name, value in self.gate.state_dict(keep_vars=True).items()}
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(tensors, f"{prefix}gate.")
        return sharded

    def load_sharded(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes what loading `sharded_state_dict`'s or `gate_sharded_state_dict`'s tensors gave; checks every key."""
        modules: dict[str, torch.nn.Module] = {
            f"specialists.{name}.": specialist for name, specialist in zip(self.names, self.specialists, strict=True)
        }
        gate_keys = {self._gate_key(name): name for name in (self.gate.state_dict() if self.gate else ())}
        taken = 0
        for prefix, module in (*modules.items(), ("gate.", self.gate)):
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            taken += len(own)
            if module is self.gate:
                own = {gate_keys[key]: value for key, value in own.items()}
            if own and module is not None:
                missing, unexpected = module.load_state_dict(own, strict=False)
                wrong = [*unexpected, *(key for key in missing if not key.endswith("_extra_state"))]
                if wrong:
                    raise KeyError(f"the loaded tensors of {prefix} do not fit the model: {wrong}")
        if taken != len(state):
            raise KeyError(f"{len(state) - taken} loaded tensors belong to no part of the model")

    def _gate_key(self, name: str) -> str:
        """`project.2.weight` → `project.NAME.weight`."""
        if not name.startswith("project."):
            return name
        _, index, rest = name.split(".", 2)
        return f"project.{self.names[int(index)]}.{rest}"


def fused_config(
    cards: Sequence[ArchitectureCard], *, parallel: ParallelConfig, precision: PrecisionConfig, backend: str
) -> TransformerConfig:
    """The configuration that schedules, DDP and finalization read for the whole.

    The sum of the hidden sizes is the width of what travels between stages. `qk_layernorm` makes finalization add up
    the gradients of QK norms over tensor parallelism, where each rank has those of its own heads only. Interleaved
    schedules send and receive one by one: in a batch, two ranks that are each other's next and previous stage would
    take activations for gradients.
    """
    config = transformer_config(cards[0], parallel=parallel, precision=precision, backend=backend)
    config.hidden_size = sum(card.hidden_size for card in cards)
    config.qk_layernorm = any(card.qk_norm for card in cards)
    config.overlap_p2p_comm = parallel.virtual_pipeline > 1
    config.batch_p2p_comm = not config.overlap_p2p_comm
    return config


def build_fused_model(
    cards: Mapping[str, ArchitectureCard],
    *,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    backend: str,
    gate: GateConfig,
    shared_vocabulary: int,
    seed: int,
    memory: MemoryConfig = MemoryConfig(),  # noqa: B008 - frozen
    vp_stage: int | None = None,
    cached: bool = False,
    trained: Collection[str] | None = None,
) -> FusedModel:
    """Builds one of this rank's chunks of the fused model; the specialists' weights are yet to be loaded.

    All specialists get the same padded number of vocabulary rows: under tensor parallelism a rank's rows then stand for
    the same ids in every head.

    Args:
        cards: the specialists' architectures, by name, in the configuration's order.
        parallel: the layout that megatron-core's parallel state was made with.
        precision: compute dtype and FP8 recipe.
        backend: `transformer_engine` or `torch`.
        gate: what the gate is like.
        shared_vocabulary: number of ids that are scored.
        seed: of the gate's random values.
        memory: what the backward computes again, and how much the mixture loss takes at once.
        vp_stage: which of this rank's chunks, where it has several.
        cached: whether responses are to be generated, with keys and values in caches.
        trained: names of the specialists that are to train; all of them where not given.
    """
    rows = max(padded_vocab_size(card.vocab_size, parallel.tensor) for card in cards.values())
    specialists = {
        name: build_specialist(
            card,
            parallel=parallel,
            precision=precision,
            backend=backend,
            padded_vocabulary=rows,
            memory=memory,
            vp_stage=vp_stage,
            cached=cached,
            trains=trained is None or name in trained,
        )
        for name, card in cards.items()
    }
    own_gate = None
    if parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage):
        hidden_sizes = [card.hidden_size for card in cards.values()]
        own_gate = Gate(hidden_sizes, gate, seed=seed, dtype=DTYPES[precision.dtype])
    config = fused_config(list(cards.values()), parallel=parallel, precision=precision, backend=backend)
    chunk_bytes = memory.loss_chunk_mib * 2**20
    return FusedModel(config, specialists, own_gate, shared_vocabulary, chunk_bytes, vp_stage)
