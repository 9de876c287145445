"""Ranks that tell each other what they found; here they are threads."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from megafuser.errors import UserError
from megafuser.preflight.rendezvous import Silence, meet
from megafuser.runtime.world import World
from tests.ports import free_ports


def world(rank: int, size: int) -> World:
    return World(rank=rank, size=size, local_rank=rank, launcher="slurm", local_size=size)


@pytest.fixture
def environment() -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0], "SLURM_JOB_ID": "7"}


def in_threads(size: int, work: Callable[[int], object]) -> list[object]:
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def test_everybody_gets_what_rank_0_makes_of_all(environment: dict[str, str]) -> None:
    """Twice over the same connections; afterwards the port can be listened at while they last."""

    def work(rank: int) -> list[str]:
        with meet(world(rank, 4), environment, 20) as meeting:
            answers = [meeting.decide(f"{rank}{turn}", lambda said: ",".join(map(str, said)), 20) for turn in "ab"]
            if rank == 0:
                socket.create_server(("", int(environment["MASTER_PORT"]))).close()
            return answers

    assert in_threads(4, work) == 4 * [["0a,1a,2a,3a", "0b,1b,2b,3b"]]


def test_ranks_that_do_not_come_or_do_not_speak(environment: dict[str, str]) -> None:
    """Rank 1 connects and says nothing, rank 3 never comes: the others are told in time."""
    done = threading.Event()

    def work(rank: int) -> str | None:
        if rank == 3:
            return None
        with meet(world(rank, 4), environment, 20) as meeting:
            if rank == 1:
                done.wait(20)
                return None
            try:
                return meeting.decide(f"{rank}", lambda said: ",".join(map(str, said)), 5 + 10 * rank)
            finally:
                done.set()

    assert in_threads(4, work) == ["0,None,2,None", None, "0,None,2,None", None]


def test_strangers_are_sent_away(environment: dict[str, str]) -> None:
    def work(rank: int) -> str | None:
        if rank == 1:
            other = environment | {"SLURM_JOB_ID": "8"}
            with pytest.raises(Silence), meet(world(1, 2), other, 20) as meeting:
                meeting.decide("I am of another job", str, 20)
            return None
        with meet(world(0, 2), environment, 3) as meeting:
            return meeting.decide("0", lambda said: ",".join(map(str, said)), 3)

    assert in_threads(2, work) == ["0,None", None]


def test_rank_0_is_not_there(environment: dict[str, str]) -> None:
    with pytest.raises(Silence), meet(world(1, 2), environment, 0.5):
        pass


def test_a_port_in_use(environment: dict[str, str]) -> None:
    with (
        socket.create_server(("", int(environment["MASTER_PORT"]))),
        pytest.raises(UserError, match=r"cannot be listened at .*submit the job again"),
        meet(world(0, 2), environment, 1),
    ):
        pass


def test_one_process_alone_needs_no_network() -> None:
    with meet(world(0, 1), {}, 1) as meeting:
        assert meeting.decide("a", lambda said: ",".join(map(str, said)), 1) == "a"
