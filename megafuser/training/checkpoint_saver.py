"""When a stage saves, and what becomes of a save: beside training, at most one at a time, the last one waited for.

Not here: what is in a checkpoint (`megafuser.training.checkpoint_contents`), and how it is written
(`megafuser.checkpoint.background`).
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from megatron.core import parallel_state

from megafuser.checkpoint.background import BackgroundSave, Outcome
from megafuser.checkpoint.snapshot import take_snapshot
from megafuser.config.run_directory import RunDirectory
from megafuser.data.tokenized import TokenizedDomain, sample_keys
from megafuser.errors import NotSavedError
from megafuser.runtime.distributed import is_rank_zero
from megafuser.training.checkpoint_contents import describe, training_state
from megafuser.training.engine import Engine
from megafuser.training.history import History
from megafuser.training.kept_checkpoints import best_checkpoints, remove_old_checkpoints, write_best, write_latest
from megafuser.training.optimizer_state import fills_all_ranks, private_storages
from megafuser.training.optimizer_state_layout import skips_gathering
from megafuser.training.session import Session
from megafuser.training.stop import ExitTime

logger = logging.getLogger(__name__)

# Before the last save is tried again: time for somebody, or for a cleaning job, to make room.
_PAUSES_SECONDS = (10.0, 60.0)
# How long a run that ends with an error lets a save beside it go on.
_GRACE_SECONDS = 60.0


class CheckpointSaver:
    """Saves one stage's checkpoints; every rank makes the same calls.

    As a context manager it sees to it that nothing half is left behind when the stage ends with an error.
    """

    def __init__(
        self,
        run: RunDirectory,
        stage: str,
        engine: Engine,
        session: Session,
        *,
        train: Sequence[TokenizedDomain] = (),
        valid: Sequence[TokenizedDomain] = (),
        on_outcome: Callable[[], None] = lambda: None,
    ) -> None:
        """Saves nothing yet.

        Args:
            run: the run's directory.
            stage: `warmup` or `joint`.
            engine: what trains.
            session: what it was set up from.
            train: tokenized training data, by domain; checkpoints say which.
            valid: tokenized validation data, likewise.
            on_outcome: called when a save has ended, complete or not.
        """
        self._on_outcome = on_outcome
        self._data = sample_keys(train, valid)
        self._run, self._stage, self._engine, self._session = run, stage, engine, session
        self._save: BackgroundSave | None = None
        self._started: tuple[int, bool] | None = None
        self._last: Outcome | None = None
        self._exit_time: ExitTime | None = None
        self._stall = 0.0
        self._own_stall = 0.0

    def start(self, step: int, history: History) -> None:
        """Saves the state after a step, beside training where `checkpoint.async` says so.

        Training stands still while a former save ends, and while the state is copied; without `checkpoint.async`, until
        all is written. A save that fails is told in one line, and training goes on.

        Args:
            step: optimizer steps done; also the position in the data.
            history: what the stage has seen.
        """
        settings = self._session.config.checkpoint
        ranks = parallel_state.get_data_parallel_world_size()
        by_rank = self._engine.has_backward and skips_gathering(self._session.config, ranks)
        reshardable = not (by_rank and fills_all_ranks(self._engine.optimizer))
        self._begin(step, history, copy=settings.async_, reshardable=reshardable)
        if not settings.async_:
            self.wait()

    def finish(self, step: int, history: History) -> Path:
        """Makes sure that the state after the stage's last step is saved, and waits for it.

        Returns:
            The checkpoint's directory.

        Raises:
            NotSavedError: it could not be saved, on several attempts.
        """
        self.wait()
        if self._started == (step, True) and self._last is not None and self._last.error is None:
            return self._last.target
        pauses = iter(_PAUSES_SECONDS)
        while True:
            self._begin(step, history, copy=False, reshardable=True)
            outcome = self.wait()
            assert outcome is not None
            if outcome.error is None:
                return outcome.target
            pause = next(pauses, None)
            if pause is None:
                break
            if is_rank_zero():
                logger.warning("trying again in %.0f s", pause)
            time.sleep(pause)
        kept = self._run.latest(self._stage)
        raise NotSavedError(
            f"{outcome.target} could not be saved ({outcome.error}); make room and run the same command again, it goes "
            f"on from {kept if kept else 'the beginning'}"
        )

    def poll(self) -> None:
        """Tells how a save has ended, if one has since the last call; costs nothing."""
        if self._save is not None and self._save.done:
            self.wait()

    def wait(self) -> Outcome | None:
        """Waits for the save that is under way, and tells how it has ended; None where none is.

        Raises:
            RuntimeError: a bug, on any rank.
        """
        if self._save is None:
            return None
        with contextlib.nullcontext() if self._save.done else self._standing_still():
            outcome = self._save.wait()
        assert outcome is not None
        self._save, self._last = None, outcome
        self._on_outcome()
        if outcome.is_bug:
            raise RuntimeError(f"{outcome.target} could not be saved: {outcome.error}")
        if outcome.error is None:
            assert self._started is not None
            self._exit_time = ExitTime(outcome.seconds + self._own_stall, of_its_kind=self._started[1])
        if is_rank_zero():
            self._tell(outcome)
        return outcome

    @property
    def exit_time(self) -> ExitTime | None:
        """How long `finish` would take now, going by the last complete save; None before the first.

        A save that is under way has to end before the last one begins.
        """
        if self._exit_time is None or self._save is None:
            return self._exit_time
        return replace(self._exit_time, seconds=2 * self._exit_time.seconds)

    def take_stall(self) -> float:
        """Seconds that training stood still for saves since the last call."""
        stall, self._stall = self._stall, 0.0
        return stall

    def __enter__(self) -> "CheckpointSaver":
        """Nothing to begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Lets a save that is under way end; where the stage has failed, not for long."""
        if self._save is None:
            return
        if kind is None:
            self.wait()
        elif self._save.wait(_GRACE_SECONDS) is None:
            self._save.cancel()

    def _begin(self, step: int, history: History, *, copy: bool, reshardable: bool) -> None:
        self.wait()
        self._own_stall = 0.0
        with self._standing_still():
            target = self._run.step_directory(self._stage, step)
            state = training_state(self._engine, step, is_loading=False, reshardable=reshardable)
            private = private_storages(self._engine.optimizer, state["optimizer"])
            snapshot = take_snapshot(state, copy=copy, private=private)
            del state
            engine, session = self._engine, self._session
            description = describe(
                target, self._stage, step, engine, session, history, data=self._data, reshardable=reshardable
            )
            self._save = BackgroundSave(snapshot, target, description.write, lambda: self._publish(target))
            self._started = (step, reshardable)

    def _publish(self, target: Path) -> None:
        write_latest(self._run, self._stage, target)
        try:
            settings = self._session.config.checkpoint
            best = best_checkpoints(self._run, self._stage) if settings.keep_best else []
            write_best(self._run, self._stage, best[0] if best else None)
            remove_old_checkpoints(self._run, self._stage, settings.keep, best=best)
        except OSError as error:
            logger.warning("old checkpoints of %s could not be removed (%s)", self._run.stage(self._stage), error)

    def _tell(self, outcome: Outcome) -> None:
        if outcome.error is None:
            logger.info(
                "saved %s: %.2f GB in %.1f s, training stood still for %.2f s",
                *(outcome.target, outcome.nbytes / 1e9, outcome.seconds, self._own_stall),
            )
            return
        kept = self._run.latest(self._stage)
        logger.warning(
            "checkpoint %s could not be saved (%s); the last complete one is %s",
            *(outcome.target, " ".join(outcome.error.split()), kept if kept else "none"),
        )

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self._stall += seconds
            self._own_stall += seconds
