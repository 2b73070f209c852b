"""What the kernel is asked to forbid: limits everywhere; on Linux namespaces, Landlock and seccomp.

Every layer stands alone, so that a machine that lacks one still has the others:

    limits      time, memory, size of files, number of files, core dumps        any Unix
    session     own session and process group                                   any Unix
    seccomp     no new process or program, no signal, no socket, no tracing     Linux on x86-64 and arm64
    landlock    files: the standard library read-only, the scratch folder       Linux 5.13 and later
    namespaces  own users, network, processes, mounts, System V objects         Linux, where they may be made

`enter_namespaces` leaves the server in a file system of its own that holds the interpreter and nothing of the user's.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

LINUX = sys.platform == "linux"
MACHINE = platform.machine()
NOBODY = 65534

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
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
    _call("syscall", _number("pivot_root"), b".", b".")
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
    _call("syscall", _number("mount_setattr"), AT_FDCWD, path.encode(), flags, attributes, len(attributes))


def own_processes(proc: int) -> int:
    """This process's PID namespace, to come back to with `own_children`."""
    return os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)


def next_child_is_first() -> None:
    """The next fork begins a PID namespace: it sees no other process, and when it ends, all of its own end."""
    _call("unshare", NEWPID)


def children_are_own(processes: int) -> None:
    _call("setns", processes, NEWPID)


def mount_scratch(size: int) -> None:
    """A scratch folder of this process's own, in memory, of so many bytes."""
    _call("unshare", NEWNS)
    _mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=1024,mode=700")


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

_NUMBERS = {  # x86-64, arm64
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "clone": (56, 220),
    "clone3": (435, 435),
    "prlimit64": (302, 261),
}
_FORBIDDEN = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "quotactl": (179, 60),
    "swapon": (167, 224),
}
"""Processes and programs, signals, sockets, other processes' memory, mounts, and memory that no limit counts."""

_AUDIT = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_CLONE_THREAD = 0x10000


def _number(name: str) -> int:
    return _NUMBERS[name][_AUDIT[MACHINE][0]]


def seccomp_filter() -> bytes | None:
    """The filter as a BPF program; None where its system-call numbers are not known here."""
    if not LINUX or MACHINE not in _AUDIT or struct.calcsize("P") != 8:
        return None
    column, architecture = _AUDIT[MACHINE]
    code: list[tuple[int, int, int, int]] = []

    def refuse(number: int | None, error: int = _EPERM) -> None:
        if number is not None:
            code.extend([(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)])

    code += [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, _NUMBER_AT)]
    if MACHINE == "x86_64":  # the x32 calls are the same ones under other numbers
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    for numbers in _FORBIDDEN.values():
        refuse(numbers[column])
    refuse(_number("clone3"), _ENOSYS)  # its flags lie in memory, out of a filter's sight; libc falls back to clone
    code += [(_EQUAL, 0, 4, _number("clone")), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
    code += [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 0, 3, _number("prlimit64")), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]  # of another process
    code += [(_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *one) for one in code)


def install_filter(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _call("prctl", PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0)
