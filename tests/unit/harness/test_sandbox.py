"""Programs that mean harm, or only go wrong: each is contained, and the next one runs as if nothing had been."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from megafuser.errors import UserError
from megafuser.harness import sandbox as sandbox_module
from megafuser.harness.sandbox import Limits, Sandbox

LIMITS = Limits(seconds=60, cpu_seconds=20, output_bytes=1 << 16)


@pytest.fixture(params=["root", "user namespace"])
def sandbox(request, monkeypatch) -> Sandbox:
    """Both ways to isolate; the first one is root's."""
    if request.param == "root" and os.getuid() != 0:
        pytest.skip("needs root")
    if request.param == "user namespace":
        monkeypatch.setattr(sandbox_module.os, "getuid", lambda: 1000)
    box = Sandbox(LIMITS)
    try:
        box.check()
    except UserError as error:
        pytest.skip(str(error))
    return box


def quick(box: Sandbox, **limits: float) -> Sandbox:
    return Sandbox(Limits(**{"seconds": 60, "cpu_seconds": 20} | limits), isolated=box.isolated)


def running(mark: str) -> list[int]:
    """Processes of this machine whose command line has a mark."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in command:
            found.append(int(directory.name))
    return found


def gone(mark: str, others: Collection[int] = ()) -> bool:
    """Whether all of them end; a namespace that is killed takes a moment."""
    deadline = time.monotonic() + 60
    while not set(running(mark)).issubset(others):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_an_endless_loop_ends(sandbox):
    began = time.monotonic()
    outcome = quick(sandbox, seconds=2, cpu_seconds=100).run("print('on', flush=True)\nwhile True: pass")
    assert (outcome.code, outcome.reason) == (None, "time")
    assert time.monotonic() - began < 50
    outcome = quick(sandbox, cpu_seconds=1).run("while True: pass")
    assert outcome.reason == "exit"
    assert outcome.code == 128 + signal.SIGKILL
    outcome = quick(sandbox, seconds=2).run("import time; time.sleep(1000)")
    assert outcome.reason == "time"


def test_memory_is_bounded(sandbox):
    outcome = sandbox.run("b = bytearray(4 << 30)\nprint('had it')")
    assert outcome.code == 1
    assert b"MemoryError" in outcome.output
    assert b"had it" not in outcome.output.split(b"\n")


def test_output_is_bounded(sandbox):
    outcome = sandbox.run("import sys\nwhile True: sys.stdout.write('x' * 10000)")
    assert (outcome.code, outcome.reason, len(outcome.output)) == (None, "output", LIMITS.output_bytes)


def test_a_fork_bomb_is_bounded_and_ends(sandbox):
    mark = f"bomb{os.getpid()}"
    bomb = (
        "import os, sys, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 400:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(1000)\n"
        "        made += 1\n"
        "except BlockingIOError:\n"
        "    pass\n"
        "print('made', made, flush=True)\n"
        # what ends it is a limit on what it writes: one on time would have to be longer than the forks take
        f"os.execv(sys.executable, [sys.executable, '-c', 'while True: print(9) #{mark}'])\n"
    )
    outcome = quick(sandbox, seconds=120, cpu_seconds=120, output_bytes=1 << 12).run(bomb)
    assert outcome.reason == "output"
    made = int(outcome.output.split()[1])
    assert made > 0
    if os.getuid() == 0:  # the limit is the user's, and does not hold for root, who is who a user namespace maps here
        assert made <= LIMITS.processes
    assert gone(mark)


def test_there_is_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = (
            "import socket\n"
            f"for address in (('127.0.0.1', {port}), ('1.1.1.1', 53)):\n"
            "    try:\n"
            "        socket.create_connection(address, 5)\n"
            "        print('connected')\n"
            "    except OSError as error:\n"
            "        print('refused')\n"
            "try:\n"
            "    socket.getaddrinfo('example.org', 80); print('resolved')\n"
            "except OSError: print('refused')\n"
        )
        assert sandbox.run(program).output.split() == [b"refused"] * 3


def test_the_environment_and_other_processes_are_hidden(sandbox, monkeypatch):
    monkeypatch.setenv("MEGAFUSER_SECRET", "tell-nobody")
    program = (
        "import os, glob\n"
        "print(sorted(os.environ))\n"
        "print(glob.glob('/proc/*'))\n"
        f"for path in ('/proc/{os.getpid()}/environ', '/proc/1/environ', '{os.environ.get('HOME', '/root')}/.bashrc',\n"
        f"             '/etc/passwd', {str(Path(__file__))!r}):\n"
        "    try: print('read', open(path).read())\n"
        "    except OSError: pass\n"
        "print(os.getuid() == 0)\n"
    )
    output = sandbox.run(program).output
    assert b"tell-nobody" not in output
    assert b"read" not in output
    assert output.split(b"\n")[:3] == [b"['HOME', 'LC_CTYPE', 'PATH', 'TMPDIR']", b"[]", b"False"]


def test_nothing_outside_can_be_written(sandbox, tmp_path):
    tmp_path.chmod(0o777)
    own = tmp_path / "own"
    own.write_text("mine")
    own.chmod(0o666)
    program = (
        "import os\n"
        f"for path in ('{own}', '{tmp_path}/new', '/new', '/usr/new', '/dev/new', '/tmp/../new', '/etc/passwd'):\n"
        "    try: open(path, 'w').write('x'); print('wrote', path)\n"
        "    except OSError: pass\n"
        "open('here', 'w').write('x'); print(os.listdir('.') == ['here', 'program.py'] or os.listdir('.'))\n"
        "try:\n"
        "    for part in range(100): open(f'big{part}', 'wb').write(bytes(1 << 20))\n"
        "except OSError: print('full')\n"
    )
    outcome = sandbox.run(program)
    assert b"wrote" not in outcome.output
    assert outcome.output.endswith(b"full\n")
    assert own.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_nobody_outside_can_be_killed(sandbox):
    program = (
        "import os, signal\n"
        f"for pid in ({os.getpid()}, os.getppid(), -1):\n"
        "    try: os.kill(pid, signal.SIGKILL); print('killed', pid)\n"
        "    except OSError: pass\n"
        "print('alive')\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        outcome = sandbox.run(program.replace(str(os.getpid()), str(victim.pid)))
        assert victim.poll() is None
        assert outcome.code is not None
    finally:
        victim.kill()
        victim.wait()


def test_what_it_leaves_behind_ends_with_it(sandbox):
    mark = f"left{os.getpid()}"
    program = (
        "import os, sys, subprocess\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000) #{mark}'], start_new_session=True,\n"
        "                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "print('done')\n"
    )
    outcome = sandbox.run(program)
    assert (outcome.code, outcome.output) == (0, b"done\n")
    assert gone(mark)
    # even where it closes what is waited for, and goes on
    silent = "import os, time\nif os.fork() == 0: os.setsid()\nos.close(1); os.close(2); time.sleep(1000)"
    others = running("program.py")  # also those of other sandboxes
    outcome = quick(sandbox, seconds=2).run(silent)
    assert outcome.reason == "time"
    assert gone("program.py", others)


def test_mounts_cannot_be_undone(sandbox):
    program = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.mount(b'none', b'/', None, 32 | 4096, None), libc.umount2(b'/usr', 2))\n"
        "if libc.unshare(0x10000000 | 0x20000) == 0:\n"
        "    print(libc.mount(b'none', b'/usr', None, 32 | 4096, None), libc.umount2(b'/usr', 2))\n"
        "else:\n"
        "    print(-1, -1)\n"
        "try: open('/usr/new', 'w'); print('wrote')\n"
        "except OSError: pass\n"
    )
    assert sandbox.run(program).output.split() == [b"-1"] * 4


def test_memory_that_belongs_to_no_process_cannot_be_had(sandbox):
    # a segment that is filled and let go of counts for no process, and stays
    program = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.shmget(0, 1 << 20, 0o1600), ctypes.get_errno())\n"
        "try: os.memfd_create('more'); print('had it')\n"
        "except OSError as error: print(error.errno)\n"
        "print(libc.msgget(0, 0o1600), libc.semget(0, 1, 0o1600))\n"
    )
    assert sandbox.run(program).output.split() == [b"-1", b"1", b"1", b"-1", b"-1"]


def test_no_new_namespaces_nor_other_doors_into_the_kernel(sandbox):
    clone, socket_call = {"x86_64": (56, 41), "aarch64": (220, 198)}[os.uname().machine]
    program = (
        "import ctypes, threading, subprocess, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(*arguments): return libc.syscall(*arguments, 0, 0, 0, 0), ctypes.get_errno()\n"
        "print(libc.unshare(0x10000000), ctypes.get_errno())\n"
        f"print(*(call({clone}, flag | 17) for flag in (0x10000000, 0x20000, 0x2000000, 0x40000000)))\n"
        "print(call(435, 0), call(425, 8), call(0x40000000 + 39))\n"
        # Unix sockets and those of the empty network; a virtual machine's to its host, and the kernel's cryptography
        f"print(*(call({socket_call}, family, 1)[0] >= 0 for family in (1, 2)))\n"
        f"print(*(call({socket_call}, family, 5) for family in (40, 38)))\n"
        # what any program may do goes on
        "one = threading.Thread(target=print, args=('thread',)); one.start(); one.join()\n"
        "print(subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout)\n"
    )
    lines = sandbox.run(program).output.decode().splitlines()
    assert lines[0] == "-1 1"
    assert lines[1] == " ".join(["(-1, 1)"] * 4)
    assert lines[2] == "(-1, 38) (-1, 1) (-1, 1)"
    assert lines[3:5] == ["True True", "(-1, 1) (-1, 1)"]
    assert lines[5:] == ["thread", "b'1\\n'"]


def test_devices_are_not_the_programs_to_change(sandbox):
    # in a container, where root is who owns them, and who the program is outside
    program = (
        "import os\n"
        "for path in ('/dev/null', '/dev/zero', '/dev/urandom'):\n"
        "    for change in (lambda: os.chmod(path, 0o666), lambda: os.utime(path, (1, 1))):\n"
        "        try: change(); print('changed', path)\n"
        "        except OSError: pass\n"
        "open('/dev/null', 'w').write('x'); print(len(open('/dev/urandom', 'rb').read(4)), os.listdir('/dev'))\n"
    )
    output = sandbox.run(program).output
    assert b"changed" not in output
    assert output.startswith(b"4 ")


def test_without_isolation_limits_hold(monkeypatch):
    monkeypatch.setenv("MEGAFUSER_SECRET", "tell-nobody")
    box = Sandbox(Limits(seconds=60, cpu_seconds=1), isolated=False)
    box.check()
    assert box.run("import os; print(os.environ, os.listdir('.'))").output.startswith(b"environ({'PATH'")
    # what starts the program has no environment that it could read
    assert box.run("import os; print(open(f'/proc/{os.getppid()}/environ').read())").output == b"\n"
    assert box.run("while True: pass").code == 128 + signal.SIGKILL
    assert b"MemoryError" in box.run("bytearray(4 << 30)").output
    assert quick(box, seconds=2).run("import time; time.sleep(1000)").reason == "time"


def test_where_it_cannot_isolate_it_says_so(monkeypatch):
    refused = sandbox_module.Outcome(111, "exit", b"Operation not permitted (unshare)")
    monkeypatch.setattr(sandbox_module.Sandbox, "run", lambda *_: refused)
    with pytest.raises(UserError, match=r"Operation not permitted \(unshare\).*--no-network-isolation"):
        Sandbox().check()


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("echo no such place; exit 3", "isolated here: no such place; allow"),
        ("exit 3", "isolated here: exit code 3; allow"),
        ("sleep 100", "isolated here: it did not end within 0.5 s; allow"),
    ],
)
def test_what_does_not_come_to_the_program_is_told(tmp_path: Path, does: str, says: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec 0<&-\n{does}\n")
    python.chmod(0o755)
    box = Sandbox(Limits(seconds=0.5 if "sleep" in does else 60))
    box._python = str(python)
    with pytest.raises(UserError, match=re.escape(says)):
        box.check()
    # a pipe holds less than such a program
    assert box.run("#" * 200_000).code == (None if "sleep" in does else 3)
