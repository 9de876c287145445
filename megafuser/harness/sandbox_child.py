"""Runs a Python program where it can do no harm; `sandbox` starts it and tells it what to do.

It is a script of its own, started with `python -I`, and imports nothing but the standard library.

With isolation the program sees a file system with nothing but Python and the system's libraries, read-only, and an
empty directory of a few megabytes; no network; no process but its own. That takes Linux namespaces: made directly by
root, which then takes a user id that nobody has, and by others in a user namespace. Whatever it starts ends with it.
System calls that would give it memory beside its own, or new namespaces, fail.
Limits on time, memory, files and processes hold with isolation and without.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import stat
import struct
import sys
from typing import Any

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_CLONE_NEWCGROUP = 0x02000000
_NEW_NAMESPACES = (
    _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWCGROUP
)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_FIRST_FREE_UID = 1_700_000_000
_NOBODY = 65534
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/nix/store")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

# Calls that fail, with their numbers on x86-64 and ARM: memory that belongs to no process, so that no limit of a
# process counts it; namespaces and mounts, in which there would be more of it; other doors into the kernel.
_DENIED = {
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_CLONE, _CLONE3 = (56, 220), 435
_SOCKET = (41, 198)
# Unix, IPv4, IPv6 and netlink sockets, which stay in the network's namespace; others need not, such as those from a
# virtual machine to its host (vsock).
_FAMILIES = (1, 2, 10, 16)
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_MACHINES = ("x86_64", "aarch64")

REFUSED = 111  # exit code: no isolation here; why is on standard error

libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Reads what to do from standard input: the settings' length on a line, settings as JSON, the program."""
    settings = json.loads(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
    program = sys.stdin.buffer.read()
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # with whoever waits for the result everything ends
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings["parent"]:
        return REFUSED
    if not settings["isolated"]:
        os.chdir(settings["directory"])
        return _run(program, settings, None)
    try:
        uid = _enter_namespaces(settings["root"])
    except OSError as error:
        print(f"{error.strerror} ({error.filename or 'unshare'})", file=sys.stderr)
        return REFUSED
    first = os.fork()  # the first process of the new namespace; with it all others end
    if first:
        code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        return code if code >= 0 else 128 - code
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        _build_root(settings["directory"], settings["prefixes"], settings["directory_bytes"])
    except OSError as error:
        print(f"{error.strerror} ({error.filename or 'mount'})", file=sys.stderr)
        os._exit(REFUSED)
    os._exit(_run(program, settings, uid))


def _enter_namespaces(as_root: bool) -> int | None:
    """Leaves all that is shared but the file system; gives the user id to take, None where it is the caller's own."""
    namespaces = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    if as_root and libc.unshare(namespaces) == 0:
        return _FIRST_FREE_UID + os.getpid()
    uid, gid = os.getuid(), os.getgid()
    _check(libc.unshare(namespaces | _CLONE_NEWUSER), "unshare")
    # nobody inside, whoever it is outside: the program's start takes all capabilities away from who is not root
    maps = (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {uid} 1"), ("gid_map", f"{_NOBODY} {gid} 1"))
    for name, text in maps:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return None


def _build_root(root: str, prefixes: list[str], directory_bytes: int) -> None:
    """Makes a file system of Python, the system's libraries and an empty /tmp, and makes it the only one."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in dict.fromkeys([*_SYSTEM, *prefixes]):
        inside = root + path
        if os.path.lexists(inside) or not os.path.lexists(path):
            continue
        os.makedirs(os.path.dirname(inside), mode=0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        else:
            _bind(path, inside, flags=_MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.mkdir(root + "/dev", 0o755)
    for path in _DEVICES:  # can be written to all the same, but not changed, which their owner could do outside too
        _bind(path, root + path, flags=_MS_RDONLY | _MS_NOSUID | _MS_NOEXEC)
    os.mkdir(root + "/tmp")
    _mount("tmpfs", root + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={directory_bytes},nr_inodes=1024,mode=1777")
    os.chdir(root)
    _check(libc.syscall(_pivot_root(), b".", b"."), "pivot_root")
    _check(libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")
    _mount("none", "/", None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/tmp")


def _bind(path: str, inside: str, flags: int) -> None:
    if stat.S_ISDIR(os.stat(path).st_mode):
        os.mkdir(inside, 0o755)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, inside, None, _MS_BIND | _MS_REC)
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)  # the first of them have mount's values
    if libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, inside.encode(), _AT_RECURSIVE, attributes, 32) == 0:
        return
    # kernels before 5.12; flags that are there cannot be taken away in a user namespace
    there = os.statvfs(inside).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("none", inside, None, _MS_BIND | _MS_REMOUNT | flags | there)


def _run(program: bytes, settings: dict[str, Any], uid: int | None) -> int:
    """Runs the program under limits and takes in whatever it leaves behind; gives its exit code."""
    child = os.fork()
    if child == 0:
        try:
            with open("program.py", "wb") as file:
                file.write(program)
            if uid is not None:
                _take_user(uid)
            _limit(settings["limits"])
            libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if settings["isolated"]:
                _deny_calls()
            environment = {"PATH": "/usr/bin:/bin", "HOME": os.getcwd(), "TMPDIR": os.getcwd()}
            os.execve(settings["python"], [settings["python"], "-I", "-B", "program.py"], environment)
        except BaseException as error:
            print(f"{error}", file=sys.stderr, flush=True)
            os._exit(REFUSED)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _take_user(uid: int) -> None:
    for own in (uid, _NOBODY):  # containers may know of a few ids only
        try:
            os.setgroups([])
            os.setresgid(own, own, own)
            os.setresuid(own, own, own)
            return
        except OSError:
            if own == _NOBODY:
                raise


def _limit(limits: dict[str, int]) -> None:
    for name, most in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _deny_calls() -> None:
    """Makes the calls of `_DENIED` fail, for this process and all that it starts (seccomp(2), classic BPF)."""
    machine = _MACHINES.index(os.uname().machine)
    load, equal, at_least, any_of, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, unknown = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    # code, how many to go on by where the test holds, and where it does not, operand; offsets: number 0, machine 4
    program = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH[machine]), (give, 0, 0, deny), (load, 0, 0, 0)]
    # calls of x86-64 by their other numbers
    program += [(at_least, 0, 1, 1 << 30), (give, 0, 0, deny)]
    for numbers in _DENIED.values():
        program += [(equal, 0, 1, numbers[machine]), (give, 0, 0, deny)]
    # its flags are in memory, where no filter can look: the C library then takes `clone`, which has them as an argument
    program += [(equal, 0, 1, _CLONE3), (give, 0, 0, unknown)]
    families = [own for family in _FAMILIES for own in ((equal, 0, 1, family), (give, 0, 0, allow))]
    program += [(equal, 0, len(families) + 2, _SOCKET[machine]), (load, 0, 0, 16), *families, (give, 0, 0, deny)]
    program += [(equal, 1, 0, _CLONE[machine]), (give, 0, 0, allow), (load, 0, 0, 16)]
    program += [(any_of, 0, 1, _NEW_NAMESPACES), (give, 0, 0, deny), (give, 0, 0, allow)]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *own) for own in program))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(instructions)))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, described, 0, 0), "seccomp")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = None if kind is None else kind.encode()
    _check(libc.mount(source.encode(), target.encode(), kind_bytes, flags, options.encode() or None), target)


def _pivot_root() -> int:
    return _DENIED["pivot_root"][_MACHINES.index(os.uname().machine)]


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    sys.exit(main())
