"""Puts the parts together: what every rank of every stage holds, and how long a step takes.

Showing it is `planning.table`; what to change where it does not fit is `planning.advice`.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.planning.activations import Row, Setting, chunk_saved, recomputed
from megafuser.planning.compute import StepTime, step_time
from megafuser.planning.gpus import GIB, PER_NODE, Gpu
from megafuser.planning.memory import Sharing, StateBytes, state_bytes
from megafuser.planning.output_head import head_product, loss_chunk, loss_saved
from megafuser.planning.parameters import chunk_parameters, rank_chunks
from megafuser.planning.pipeline_schedule import peak_activations
from megafuser.planning.transients import layer_working_set, stream_bytes
from megafuser.planning.workload import Samples, Workload, step_workload
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.layout_checks import check_layout
from megafuser.specialist.pipeline_split import layers_per_chunk

_RESERVED = 3 * GIB
"""Taken for the CUDA context, NCCL's buffers and what the allocator cannot use; an assumption, not counted."""


@dataclass(frozen=True)
class Task:
    """What is planned.

    Attributes:
        config: the run's configuration.
        cards: the specialists, in order.
        samples: what samples are like.
        gpu: what computes; None on a CPU.
        gpus: number of ranks.
        mfu: share of the peak rate while a rank computes.
        backend: `torch` or `transformer_engine`.
    """

    config: RunConfig
    cards: Mapping[str, ArchitectureCard]
    samples: Samples
    gpu: Gpu | None
    gpus: int
    mfu: float
    backend: str

    @property
    def data_parallel(self) -> int:
        """Number of data-parallel ranks."""
        return self.gpus // (self.config.parallel.tensor * self.config.parallel.pipeline)

    def trained(self, stage: str) -> dict[str, ArchitectureCard]:
        """The specialists that have a backward in a stage."""
        return {name: self.cards[name] for name in self.config.trained(stage)}

    def check(self) -> None:
        """Checks FP8 and the layout against the GPUs and every specialist, as a stage would at its start.

        Raises:
            UserError: what does not fit, and the nearest that does.
        """
        if self.config.precision.fp8 and self.gpu is not None and self.gpu.fp8 is None:
            raise UserError(
                f"precision.fp8: {self.config.precision.fp8} needs a GPU with FP8 (Ada, Hopper, Blackwell), and "
                f"{self.gpu.name} has none; set precision.fp8=null"
            )
        tensor, pipeline = self.config.parallel.tensor, self.config.parallel.pipeline
        multiple = tensor * pipeline
        if self.gpus % multiple:
            raise UserError(
                f"--gpus {self.gpus} is not a multiple of {multiple} (tensor {tensor} x pipeline {pipeline}); try "
                f"--gpus {-(-self.gpus // multiple) * multiple}"
            )
        check_layout(self.cards, self.config, self.gpus)


@dataclass(frozen=True)
class RankPlan:
    """Bytes of each tensor- and data-parallel rank of one pipeline rank; shares of the states differ by padding only.

    Attributes:
        pipeline_rank: which.
        layers: of each specialist.
        states: weights, gradients, optimizer.
        fp8_weights: Transformer Engine's FP8 copies of the layers' matrices, kept from one micro-batch to the next.
        activations: kept for backwards to come, of all micro-batches at once; the warm-up keeps none.
        recompute: what recompute brings back at once.
        logits: a chunk of the mixture loss, and its part of a head's gradient.
        communication: what travels between pipeline stages.
        working: temporary tensors of one layer.
        reserved: not counted but set aside.
    """

    pipeline_rank: int
    layers: tuple[int, ...]
    states: StateBytes
    fp8_weights: float
    activations: float
    recompute: float
    logits: float
    communication: float
    working: float
    reserved: float

    @property
    def total(self) -> float:
        """Device memory in all."""
        held = self.states.weights + self.states.gradients + self.states.optimizer + self.fp8_weights
        transient = self.activations + self.recompute + self.logits + self.communication + self.working
        return held + transient + self.reserved


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: `warmup` or `joint`.
        work: a step's.
        ranks: by pipeline rank.
        time: a step's.
        host_per_node: bytes of host memory for offloaded states, of the fullest node.
    """

    name: str
    work: Workload
    ranks: tuple[RankPlan, ...]
    time: StepTime
    host_per_node: float

    @property
    def peak(self) -> float:
        """Bytes of the fullest rank."""
        return max(rank.total for rank in self.ranks)


def plan_stage(task: Task, stage: str) -> StagePlan:
    """Plans one stage; the layout must be one that works."""
    trained = task.trained(stage)
    config, cards = task.config, task.cards
    settings = config.stage(stage)
    work = step_workload(config, settings, task.samples, task.data_parallel)
    memory = config.memory if trained else dataclasses.replace(config.memory, recompute="none")
    setting = Setting(config.parallel, config.precision, memory, task.backend)
    share = float(task.samples.responses.mean() / task.samples.lengths.mean())
    longest = min(work.width, config.data.sequence_length)
    row = Row(width=work.width, used=work.width, response_tokens=work.width * share, longest=longest)
    ranks = tuple(_plan_rank(task, setting, row, work, rank, trained) for rank in range(config.parallel.pipeline))
    time = step_time(
        cards,
        config,
        work,
        trained=trained,
        load_balance=settings.load_balance > 0,
        gpu=task.gpu,
        gpus=task.gpus,
        mfu=task.mfu,
        states=[rank.states for rank in ranks],
    )
    host = min(PER_NODE, task.gpus) * max(rank.states.host for rank in ranks)
    return StagePlan(stage, work, ranks, time, host)


def rank_states(task: Task, *, joint: bool, pipeline_rank: int, data_rank: int = 0) -> StateBytes:
    """Weights, gradients and optimizer states of one rank.

    Args:
        task: what is planned.
        joint: the stage.
        pipeline_rank: which.
        data_rank: which; their shares differ by the padding of buckets only.
    """
    config = task.config
    chunks = [
        chunk_parameters(task.cards, config.parallel, config.gate.hidden_size, chunk)
        for chunk in rank_chunks(config.parallel, pipeline_rank)
    ]
    return state_bytes(
        chunks,
        joint=joint,
        precision=config.precision,
        settings=config.optimizer,
        sharing=Sharing(
            distributed=config.optimizer.distributed,
            data_parallel=task.data_parallel,
            data_rank=data_rank,
            overlapped=config.parallel.overlap_grad_reduce and joint,
            pipeline_rank=pipeline_rank,
        ),
        fused_adam=task.backend == "transformer_engine",
        frozen=tuple(f"specialists.{k}." for k, name in enumerate(task.cards) if name in config.joint.frozen),
    )


def _plan_rank(
    task: Task, setting: Setting, row: Row, work: Workload, rank: int, trained: Mapping[str, ArchitectureCard]
) -> RankPlan:
    config, cards, parallel = task.config, task.cards, task.config.parallel
    chunks = rank_chunks(parallel, rank)
    is_last = rank == parallel.pipeline - 1
    streams = stream_bytes(cards, row, setting)
    kept = 0.0
    if trained:
        last = parallel.pipeline * parallel.virtual_pipeline - 1
        by_chunk = [
            chunk_saved(trained, row, setting, chunk)
            + streams * (chunk < last)  # what it sends on; what it receives, its first norm keeps
            + (loss_saved(cards, row, setting, config.gate.hidden_size, trained=trained) if chunk == last else 0.0)
            for chunk in chunks
        ]
        kept = peak_activations(by_chunk, pipeline=parallel.pipeline, rank=rank, micro_batches=work.micro_batches)
    elif is_last:
        kept = loss_saved(cards, row, setting, config.gate.hidden_size, trained=())
    return RankPlan(
        pipeline_rank=rank,
        layers=tuple(_layers(card, task, chunks) for card in cards.values()),
        states=rank_states(task, joint=bool(trained), pipeline_rank=rank),
        fp8_weights=_fp8_weights(task, chunks, trained),
        activations=kept,
        recompute=recomputed(trained, row, setting),
        logits=_logits(task, setting, row, trained) if is_last else 0.0,
        communication=2 * streams if parallel.pipeline > 1 else 0.0,
        working=streams + layer_working_set(cards, row, setting),
        reserved=_RESERVED if task.gpu is not None else 0,
    )


def _logits(task: Task, setting: Setting, row: Row, trained: Collection[str]) -> float:
    """What the mixture loss takes for a chunk of tokens; on CPUs the product with a head is added row by row."""
    product = head_product(task.cards, setting, trained=trained) if task.gpu is not None else 0.0
    return loss_chunk(task.cards, row, setting) + product


def _fp8_weights(task: Task, chunks: list[int], trained: Collection[str]) -> float:
    """One byte of every matrix of the layers, and one of its transpose where there is a backward."""
    if task.config.precision.fp8 is None:
        return 0.0
    elements = sum(
        (2.0 if name in trained else 1.0) * _layers(card, task, chunks) * card.layer_matrix_count()
        for name, card in task.cards.items()
    )
    return elements / task.config.parallel.tensor


def _layers(card: ArchitectureCard, task: Task, chunks: list[int]) -> int:
    dealt = layers_per_chunk(card.num_layers, task.config.parallel)
    return sum(dealt[chunk] for chunk in chunks)
