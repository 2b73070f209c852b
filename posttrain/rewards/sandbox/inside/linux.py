"""What the kernel is asked to forbid: limits everywhere; on Linux namespaces, Landlock and seccomp.

Every layer stands alone, so that a machine that lacks one still has the others:

    limits      time, memory, size of files, number of files, core dumps        any Unix
    session     own session and process group                                   any Unix
    seccomp     what `inside/seccomp.py` lists: processes, signals, sockets ... Linux on x86-64 and arm64
    landlock    files: the standard library read-only, the scratch folder       Linux 5.13 and later
    namespaces  own users, network, processes, mounts, System V objects         Linux, where they may be made

`enter_namespaces` leaves the server in a file system of its own that holds the interpreter and nothing of the user's.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

from posttrain.rewards.sandbox.inside.seccomp import number

LINUX = sys.platform == "linux"
NOBODY = 65534

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
O_PATH = 0o10000000
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
SCRATCH = "/tmp"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    """A C function that gives -1 on failure; OSError names it."""
    result = int(getattr(_libc, name)(*arguments))  # a foreign library's function by name
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), options.encode() or None)


# ---------------------------------------------------------------- namespaces


def enter_namespaces(readable: Sequence[str], hidden: Sequence[str]) -> int:
    """Own users, network, mounts and System V objects now, own processes for children; gives /proc of the outside.

    A server that runs as root becomes nobody on the way; it has to make its mounts first, while it can still read.

    Raises:
        OSError: the system does not allow it. The process is then of no use and should end.
    """
    proc = os.open("/proc", O_PATH)
    if os.geteuid() == 0:
        _call("unshare", NEWNS | NEWNET | NEWIPC | NEWUTS)
        _build_root(readable, hidden)
        become_nobody()
        _new_user(proc, NEWPID)
    else:
        _new_user(proc, NEWNS | NEWNET | NEWIPC | NEWUTS | NEWPID)
        _build_root(readable, hidden)
    return proc


def _new_user(proc: int, others: int) -> None:
    """A user namespace in which the process is who it was, with the power over its own namespaces only."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", NEWUSER | others)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(fd, text.encode())
        os.close(fd)


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # or /proc/self would stay root's, and the maps could not be written


def _build_root(readable: Sequence[str], hidden: Sequence[str]) -> None:
    """A file system of a read-only copy of `readable`, four devices and an empty scratch folder; the rest is gone."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    root = SCRATCH  # any folder that exists will do: what it held stays outside
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in [*_without_nested(readable), *DEVICES]:
        target = root + path
        if os.path.islink(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.lexists(target):
                os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(path, target, None, MS_BIND | MS_REC)
        if path not in DEVICES:
            _read_only(target)
    for path in hidden:
        _mount("tmpfs", root + path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k")
    os.makedirs(root + SCRATCH, exist_ok=True)
    os.chdir(root)
    _call("syscall", number("pivot_root"), b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    _read_only("/", recursive=False)


def without_hidden(readable: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """The same files as rules that only ever allow: a folder that holds a hidden one becomes what else it holds."""
    allowed = []
    for path in readable:
        if path in hidden:
            continue
        if any(name.startswith(path + "/") for name in hidden) and not os.path.islink(path):
            allowed += without_hidden([os.path.join(path, name) for name in os.listdir(path)], hidden)
        else:
            allowed.append(path)
    return allowed


def _without_nested(paths: Sequence[str]) -> list[str]:
    """Folders that lie in another one of the list are there with it."""
    present = sorted({path for path in paths if os.path.lexists(path)})
    return [path for path in present if not any(path.startswith(other + "/") for other in present)]


def _read_only(path: str, *, recursive: bool = True) -> None:
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    _call("syscall", number("mount_setattr"), AT_FDCWD, path.encode(), flags, attributes, len(attributes))


def own_processes(proc: int) -> int:
    """This process's PID namespace, to come back to with `own_children`."""
    return os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)


def next_child_is_first() -> None:
    """The next fork begins a PID namespace: it sees no other process, and when it ends, all of its own end."""
    _call("unshare", NEWPID)


def children_are_own(processes: int) -> None:
    _call("setns", processes, NEWPID)


def mount_scratch(size: int, files: int) -> None:
    """A scratch folder of this process's own, in memory, of so many bytes and files."""
    _call("unshare", NEWNS)
    _mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes={files},mode=700")


# ---------------------------------------------------------------- limits and privileges


def set_limits(*, seconds: int, memory: int, file_size: int, files: int, no_processes: bool) -> None:
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
    }
    if no_processes:  # counts all processes of the user, so that any limit below theirs forbids every new one
        limits[resource.RLIMIT_NPROC] = 0
    for which, value in limits.items():
        with suppress(ValueError, OSError):  # macOS does not bound the address space
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))


def die_with_parent() -> None:
    if LINUX:
        _call("prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)


def drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))


def no_new_privileges() -> None:
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


# ---------------------------------------------------------------- Landlock: which files

_READ = 1 << 2 | 1 << 3
_WRITE_FILE = 1 << 1
_SPECIAL_FILES = 1 << 6 | 1 << 9 | 1 << 11  # devices and sockets
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Number of rights over files by version of Landlock; 16 from version 5."""


def landlock_version() -> int:
    """0 where the kernel has none."""
    if not LINUX:
        return 0
    try:
        return _call("syscall", 444, None, 0, 1)
    except OSError:
        return 0


def restrict_files(version: int, readable: Sequence[str], writable: Sequence[str]) -> None:
    """From here on: `readable` may be read, `writable` folders written, and nothing else; no TCP; no outside signal."""
    every = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    fields = [every, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    kept = 1 if version < 4 else 2 if version < 6 else 3
    attributes = struct.pack(f"{kept}Q", *fields[:kept])
    rules = _call("syscall", 444, attributes, len(attributes), 0)
    wanted = [(path, _READ) for path in readable]
    wanted += [(path, (every & ~_SPECIAL_FILES & ~1)) for path in writable]
    wanted += [(path, (_READ | _WRITE_FILE) & ~(1 << 3)) for path in DEVICES]
    for path, rights in wanted:
        if not os.path.exists(path):
            continue
        fd = os.open(path, O_PATH)
        allowed = rights if os.path.isdir(path) else rights & (1 << 1 | 1 << 2 | 1 << 14)
        _call("syscall", 445, rules, 1, struct.pack("=Qi", allowed & every, fd), 0)
        os.close(fd)
    _call("syscall", 446, rules, 0)
    os.close(rules)


# ---------------------------------------------------------------- seccomp: which system calls


def install_filter(program: bytes) -> None:
    """From here on the filter holds, for this process and all its threads."""
    _buffer, header = _filter_header(program)
    _call("prctl", PR_SET_SECCOMP, 2, header, 0, 0)


def install_metered_filter(program: bytes) -> int:
    """The same; gives the descriptor on which the kernel asks about calls that the filter hands on (inside/meter.py).

    Raises:
        OSError: a kernel before 5.0, or one where a filter further out listens already.
    """
    _buffer, header = _filter_header(program)
    return _call("syscall", number("seccomp"), SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, header)


def end_thread() -> None:
    """The system call by which one thread ends; `os._exit` would end the process, by another one."""
    _call("syscall", number("exit"), 0)


def _filter_header(program: bytes) -> tuple[object, ctypes.c_char_p]:
    """`struct sock_fprog`, and the buffer that it points to, which the caller has to keep until the call is done."""
    buffer = ctypes.create_string_buffer(program, len(program))
    return buffer, ctypes.c_char_p(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
