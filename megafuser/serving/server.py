"""`megafuser serve`: from a checkpoint to a server that runs until it is told to stop.

The routes are `serving.app`; the model's steps are `serving.engine_loop`.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator

import torch.distributed as dist
import uvicorn

from megafuser.errors import UserError
from megafuser.inference.open_model import FusedLanguageModel, Opening, open_checkpoint
from megafuser.runtime.world import detect_world
from megafuser.serving.app import build_app
from megafuser.serving.engine_loop import EngineLoop
from megafuser.serving.guard import Guard
from megafuser.serving.metrics import Metrics
from megafuser.serving.service import Service
from megafuser.serving.settings import Settings

logger = logging.getLogger(__name__)

_FAILED = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 2048
_LOOKS = 0.05  # seconds between two looks at what still runs


def run_serve(opening: Opening, settings: Settings) -> int:
    """Serves a checkpoint; every rank calls it.

    Returns:
        The exit code: 0 after a signal, 1 where the engine has failed.

    Raises:
        UserError: something that the user can mend.
    """
    leads = detect_world().rank == 0
    # before the weights: a port that is taken is soon told
    listener = listen(settings) if leads else None
    with contextlib.ExitStack() as stack:
        if listener is not None:
            stack.callback(listener.close)
        model = stack.enter_context(open_checkpoint(opening))
        if not leads:
            for number in _SIGNALS:  # a launcher tells all ranks, and rank 0 ends them in good order
                signal.signal(number, signal.SIG_IGN)
        with model.engine.following():
            if dist.get_rank() > 0 or listener is None:
                return 0
            code = asyncio.run(Serving(model, settings, listener).run())
            if code and dist.get_world_size() > 1:
                # the others may be in the middle of the step that failed, and would never hear that it is all over
                logging.shutdown()
                os._exit(code)
            return code


def listen(settings: Settings) -> socket.socket:
    """A socket at the address, which refuses connections until the server is ready.

    Raises:
        UserError: the address is taken, or none of this machine's.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {settings.host} cannot be listened at ({error}); give an address of this machine"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _taken(settings, error) from None
    return listener


def _taken(settings: Settings, error: OSError) -> UserError:
    return UserError(
        f"{settings.host}:{settings.port} cannot be listened at ({error.strerror}); choose another --port, or 0 for a "
        "free one"
    )


class Serving:
    """A server for one model, from its start to its end.

    Attributes:
        url: where it is.
        service: what its handlers use.
    """

    def __init__(self, model: FusedLanguageModel, settings: Settings, listener: socket.socket) -> None:
        """Prepares.

        Args:
            model: open; this process leads.
            settings: the server's.
            listener: a bound socket.
        """
        host, port = listener.getsockname()[:2]
        host = socket.gethostname() if host in ("0.0.0.0", "::") else host  # what clients can use
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._settings = settings
        self._listener = listener
        metrics = Metrics(model.specialists)
        engine = EngineLoop(
            model.engine, max_running=settings.max_running, max_queue=settings.max_queue, metrics=metrics
        )
        extents = model.engine.extents
        metrics.add_gauge("megafuser_running_requests", "Sequences in a step.", lambda: len(engine.scheduler.running))
        metrics.add_gauge(
            "megafuser_waiting_requests",
            "Sequences that wait.",
            lambda: max(engine.taken - len(engine.scheduler.running), 0),
        )
        metrics.add_gauge("megafuser_kv_positions", "Positions of the caches.", lambda: extents.capacity)
        metrics.add_gauge(
            "megafuser_kv_positions_used",
            "Positions that sequences have taken.",
            lambda: extents.capacity - extents.free,
        )
        self.service = Service(model, settings, metrics, engine)
        self._guard = build_app(self.service)
        self._told = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None

    def stop(self) -> None:
        """What a signal does, from any thread: the first lets requests finish, the second does not."""
        self._told += 1
        if self._loop is not None and self._changed is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def run(self, on_ready: Callable[[str], None] | None = None) -> int:
        """Serves until `stop`.

        Args:
            on_ready: is told the URL.

        Returns:
            The exit code.

        Raises:
            UserError: another process listens at the address by now.
        """
        try:
            self._listener.listen(_BACKLOG)
        except OSError as error:  # of two that are bound and do not listen yet, the second one learns it only here
            raise _taken(self._settings, error) from None
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        config = uvicorn.Config(
            self._guard, log_config=None, access_log=False, server_header=False, lifespan="off", backlog=_BACKLOG,
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = _Uvicorn(config, self.stop)
        self.service.engine.start(self.stop)
        ending = asyncio.create_task(self._end(server))
        try:
            serving = asyncio.create_task(server.serve(sockets=[self._listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            self._say_ready(on_ready)
            if self._told:
                self._changed.set()
            await serving
        finally:
            ending.cancel()
            await asyncio.to_thread(self.service.engine.stop)
            self.service.close()
        return _FAILED if self.service.engine.failure is not None else 0

    def _say_ready(self, on_ready: Callable[[str], None] | None) -> None:
        host = self._listener.getsockname()[0]
        if self._settings.api_key is None and not ipaddress.ip_address(host.split("%")[0]).is_loopback:
            logger.warning("anyone who reaches %s can use the model; give --api-key, or --host 127.0.0.1", self.url)
        logger.info("serving %s at %s", self.service.name, self.url)
        if on_ready is not None:
            on_ready(self.url)

    async def _end(self, server: uvicorn.Server) -> None:
        """Waits for the word, then for the running requests within the grace time, then ends the server."""
        assert self._changed is not None
        await self._changed.wait()
        self._guard.is_stopping = True
        engine = self.service.engine
        if engine.failure is None:
            logger.info("stopping; running requests have %g s to finish", self._settings.grace_seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._finished(self._guard), self._settings.grace_seconds)
        # tells the handlers of what is left
        await asyncio.to_thread(engine.stop)
        server.should_exit = True

    async def _finished(self, guard: Guard) -> None:
        """Ends when nothing runs any more, or when the second signal comes."""
        while guard.present and self._told < 2 and self.service.engine.failure is None:
            await asyncio.sleep(_LOOKS)


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        try:
            before = {number: signal.signal(number, lambda *_: self._on_signal()) for number in _SIGNALS}
        except ValueError:  # not in the main thread, which only tests do
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
