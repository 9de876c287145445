"""One step of many sequences through the whole model, on all ranks.

Rank 0 decides; the others follow. A step's asks go to every rank, the row goes through the pipeline by megatron-core's
schedule as a validation row does, and the last stage's answers come back to rank 0. What is to be read again later,
keys and values, stays where it was made. What is in a step is decided by `inference.scheduler` and
`inference.scoring`.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megafuser.errors import UserError
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import Views
from megafuser.inference.cache import Extents, KeyValuePool, bytes_per_position, make_pools
from megafuser.inference.cached_row import Segment, cached_row
from megafuser.inference.predict import Head
from megafuser.inference.step_messages import Ask, Prediction, Step
from megafuser.runtime.distributed import all_or_none

# Ranks that follow wait so long for the next step: a server may have nothing to do for months.
_IDLE = datetime.timedelta(days=3650)


class Engine:
    """Runs steps; see the module.

    Attributes:
        extents: which positions of the caches are free; rank 0's.
        limit: positions of the longest sequence.
        around_step: goes around each step on rank 0.
    """

    def __init__(
        self,
        model: FusedModel,
        *,
        limit: int,
        cache_bytes: int,
        device: torch.device,
        forced: Sequence[float] | None = None,
    ) -> None:
        """Takes memory for the caches; every rank calls it.

        Args:
            model: this rank's piece, with weights, built for caches.
            limit: positions of the longest sequence.
            cache_bytes: what keys and values may take on this rank.
            device: the model's.
            forced: K weights for every token, in the gate's place.

        Raises:
            UserError: a rank has no room for them; on every rank.
        """
        self.limit = limit
        self.device = device
        self.around_step: Callable[[], AbstractContextManager[None]] = nullcontext
        self._model = model.eval()
        capacity = torch.tensor(cache_bytes // bytes_per_position(model), device=device)
        dist.all_reduce(capacity, op=dist.ReduceOp.MIN)
        self.extents = Extents(max(int(capacity), 1))
        self._forced = None if forced is None else tuple(forced)
        self._pools = _take_memory(model, self.extents.capacity, cache_bytes, device)
        self._head = Head(model, forced) if model.post_process else None
        # the last stage's first rank, since there is one replica only
        self._answering = dist.get_world_size() - parallel_state.get_tensor_model_parallel_world_size()
        # of the objects that travel; also where the model's is NCCL, which would need the GPU for them
        self._group = dist.new_group(backend="gloo", timeout=_IDLE) if dist.get_world_size() > 1 else None

    @property
    def specialists(self) -> int:
        """K."""
        return len(self._pools)

    @property
    def cache_bytes(self) -> int:
        """What keys and values take on this rank."""
        return sum(pool.nbytes for pool in self._pools)

    def force(self, weights: Sequence[float] | None) -> None:
        """Gives every token of the steps to come these K weights, or the gate's again; rank 0 calls it."""
        self._forced = None if weights is None else tuple(weights)

    def step(self, asks: Sequence[Ask]) -> list[list[Prediction]]:
        """Runs one step; rank 0 calls it, while the others are in `follow`.

        Returns:
            For each ask, as many predictions as it has outputs.
        """
        with self.around_step():
            self._tell((list(asks), self._forced))
            return self._run(asks, self._forced)

    @contextmanager
    def following(self) -> Iterator[bool]:
        """Gives True on the rank that leads, which then calls `step`; on the others False, when it is all over.

        Whatever ends the leader's part, a mistake too, lets the others go.
        """
        if dist.get_rank() > 0:
            while (told := self._told()) is not None:
                self._run(*told)
            yield False
            return
        try:
            yield True
        finally:
            self._tell(None)

    def _tell(self, step: Step | None) -> None:
        if self._group is not None:
            dist.broadcast_object_list([step], src=0, group=self._group)

    def _told(self) -> Step | None:
        told: list[Step | None] = [None]
        dist.broadcast_object_list(told, src=0, group=self._group)
        return told[0]

    @torch.inference_mode()
    def _run(self, asks: Sequence[Ask], forced: tuple[float, ...] | None) -> list[list[Prediction]]:
        if self._head is not None:
            self._head.force(forced)
        row = cached_row(
            [
                [Segment(ask.start, ask.past[k], ask.ids[k], ask.outputs) for ask in asks]
                for k in range(self.specialists)
            ],
            self._pools,
            self.limit,
            self.device,
        )
        answers: list[Any] = [None]

        def forward_step(rows: Iterator[Views], piece: FusedModel) -> tuple[torch.Tensor, Callable[..., Any]]:
            views = next(rows)
            if self._head is None:
                return piece.handed_on(views), lambda output: output
            if any(ask.outputs for ask in asks):
                answers[0] = self._head.predict(piece.response_states(views), asks)
            else:
                piece.streams(views)
                answers[0] = [[] for _ in asks]
            return torch.zeros((), device=self.device), lambda output, **_: output

        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter([row]),
            model=[self._model],
            num_microbatches=1,
            seq_length=row.width,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            dist.broadcast_object_list(answers, src=self._answering, group=self._group)
        predictions: list[list[Prediction]] = answers[0]
        return predictions


def _take_memory(model: FusedModel, capacity: int, cache_bytes: int, device: torch.device) -> list[KeyValuePool]:
    """The pools, once every rank has its own."""

    def take() -> list[KeyValuePool]:
        try:
            return make_pools(model, capacity, device)
        except RuntimeError as error:  # of torch's allocators only the GPU's has a class of its own
            if "memory" not in str(error):
                raise
            raise UserError(
                f"caches of {cache_bytes / 2**30:g} GiB have no room beside the weights; give a smaller --cache-gib"
            ) from None

    return all_or_none(take)
