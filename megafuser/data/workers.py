"""Work on blocks in processes: a bounded number under way, results in the order of the blocks.

What is done with a block is in `data.cache.blocks` and `data.decontamination.scan`.
"""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Future = concurrent.futures.Future

_PER_WORKER = 3


def available_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def worker_pool(
    count: int, here: Callable[..., R], there: Callable[..., R], start: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[Callable[..., "Future[R]"]]:
    """Gives a function that submits work to processes, which are gone at the end, whatever happens.

    Args:
        count: processes; with 1 all is done in this one, at once.
        here: does the work in this process.
        there: does it in a worker; a function of a module.
        start: readies a worker, once.
        arguments: of `start`.

    Raises:
        RuntimeError: a worker ended by itself.
    """
    if count == 1:

        def now(*work: Any) -> "Future[R]":
            future: Future[R] = Future()
            future.set_result(here(*work))
            return future

        yield now
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        count,
        # Never fork: this process has threads of torch and of the tokenizers.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start,
        initargs=arguments,
    )
    try:
        yield lambda *work: pool.submit(there, *work)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process ended by itself, as when memory runs out; run again with fewer workers "
            "(data.workers, --workers)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    items: Iterable[T], submit: Callable[[T], "Future[R] | None"], workers: int
) -> Iterator[tuple[T, R | None]]:
    """Items with their results, in order; a few of each worker are under way.

    Args:
        items: read as they are needed.
        submit: begins the work on one; None where there is none to do.
        workers: how many processes there are.
    """
    waiting: collections.deque[tuple[T, Future[R] | None]] = collections.deque()

    def first() -> tuple[T, R | None]:
        item, future = waiting.popleft()
        return item, future.result() if future is not None else None

    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) >= workers * _PER_WORKER:
            yield first()
    while waiting:
        yield first()
