"""How ranks tell each other what they found, with nothing but sockets: torch may be what is broken.

Rank 0 listens at `MASTER_ADDR:MASTER_PORT`; every other rank keeps one connection to it. Each message is a line. A
stage's ranks meet in `runtime.distributed`.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from megafuser.errors import UserError
from megafuser.runtime.world import World

_RETRY_SECONDS = 0.2
_GREETING_SECONDS = 10.0
_LONGEST_LINE = 1 << 20

Tell = Callable[[Sequence[str | None]], str]


class Silence(Exception):
    """Rank 0 was not heard of in time."""


class _Line:
    """One connection, a line at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")

    def send(self, text: str) -> None:
        self._socket.sendall(text.encode() + b"\n")

    def receive(self, seconds: float) -> str | None:
        """The next line; None where there is none in time, or the other side is gone."""
        self._socket.settimeout(max(seconds, 0.01))
        try:
            line = self._file.readline(_LONGEST_LINE)
        except OSError:
            return None
        return line.decode(errors="replace")[:-1] if line.endswith(b"\n") else None

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Meeting:
    """All ranks of a job.

    Attributes:
        world: this process's place.
    """

    def __init__(self, world: World, token: str, lines: Mapping[int, _Line], server: socket.socket | None) -> None:
        """Made by `meet`."""
        self.world = world
        self._token = token
        self._lines = dict(lines)
        self._server = server

    def decide(self, said: str, tell: Tell, seconds: float) -> str:
        """Every rank says one line; rank 0 makes one of all, which every rank gets.

        Args:
            said: this rank's line.
            tell: on rank 0, makes the answer of what was said, by rank; None of a rank that said nothing in time.
            seconds: how long to wait for the others.

        Raises:
            Silence: rank 0 does not answer in time.
        """
        if self.world.rank > 0:
            with contextlib.suppress(OSError):  # it is gone; receiving tells
                self._lines[0].send(said)
            answer = self._lines[0].receive(seconds)
            if answer is None:
                raise Silence
            return answer
        deadline = time.monotonic() + seconds
        self._accept(deadline)
        heard = {rank: line.receive(deadline - time.monotonic()) for rank, line in sorted(self._lines.items())}
        answer = tell([said, *(heard.get(rank) for rank in range(1, self.world.size))])
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # its rank is gone, and the answer says so
                line.send(answer)
        return answer

    def _accept(self, deadline: float) -> None:
        """Waits for the ranks that have not come yet; then nobody listens any more, and the port is free."""
        if self._server is None:
            return
        while len(self._lines) < self.world.size - 1 and (left := deadline - time.monotonic()) > 0:
            self._server.settimeout(left)
            try:
                connection, _ = self._server.accept()
            except OSError:
                break
            line = _Line(connection)
            token, _, rank = (line.receive(min(left, _GREETING_SECONDS)) or "").partition(" ")
            if token == self._token and rank.isdigit() and 0 < int(rank) < self.world.size:
                self._lines[int(rank)] = line
            else:
                line.close()
        self._server.close()
        self._server = None

    def close(self) -> None:
        """Ends all connections; rank 0 waits a moment for the others to go first, since its exit code ends them."""
        for line in self._lines.values():
            if self.world.rank == 0:
                line.receive(_GREETING_SECONDS)
            line.close()
        if self._server is not None:
            self._server.close()


@contextmanager
def meet(world: World, environment: Mapping[str, str], seconds: float) -> Iterator[Meeting]:
    """Connects all ranks; rank 0 does not wait for them here, so that it can look at its own things meanwhile.

    Args:
        world: this process's place.
        environment: `MASTER_ADDR` and `MASTER_PORT`, and the job's number.
        seconds: how long to try to reach rank 0.

    Raises:
        UserError: the port is in use.
        Silence: rank 0 cannot be reached in time.
    """
    if world.size == 1:
        yield Meeting(world, "", {}, None)
        return
    address, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    token = f"megafuser-{environment.get('SLURM_JOB_ID', '0')}"
    if world.rank == 0:
        try:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            server = socket.create_server(("", int(port)), family=family, backlog=world.size, dualstack_ipv6=both)
        except OSError as error:
            raise UserError(f"port {port} cannot be listened at ({error.strerror}); submit the job again") from None
        meeting = Meeting(world, token, {}, server)
    else:
        line = _Line(_connect(address, int(port), time.monotonic() + seconds))
        line.send(f"{token} {world.rank}")
        meeting = Meeting(world, token, {0: line}, None)
    try:
        yield meeting
    finally:
        meeting.close()


def _connect(address: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((address, port), timeout=max(deadline - time.monotonic(), 0.01))
        except OSError:
            if time.monotonic() > deadline:
                raise Silence from None
            time.sleep(_RETRY_SECONDS)
