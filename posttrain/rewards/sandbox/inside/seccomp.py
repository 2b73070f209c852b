"""Which system calls a program may make: the filter, as the BPF program that the kernel runs before each call.

The list is one of what is known to be dangerous, not of all that is not needed (docs/sandbox.md). Two kinds of calls
need more than a list:

    by argument  threads but no processes; fcntl and ioctl but no signals by them; pairs of stream sockets only
    metered      what is harmless once and harmful a thousand times: new threads, and new files where the scratch
                 folder lies on disk. The kernel asks the server about each such call (inside/meter.py)

A filter sees numbers, not what pointers point to: paths, and the arguments of clone3 and openat2, are out of its sight.
"""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Sequence

MACHINE = platform.machine()

_COMMON = {  # calls that are named outside of the lists below: x86-64, arm64
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "seccomp": (317, 277),
    "clone": (56, 220),
    "clone3": (435, 435),
    "prlimit64": (302, 261),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "socketpair": (53, 199),
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "exit": (60, 93),
}
_FORBIDDEN = {
    # processes and programs, signals, sockets, other processes, mounts, and memory that no limit counts
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
    # shared by the whole machine: 65,536 asynchronous contexts, timers
    "io_setup": (206, 0),
    "timer_create": (222, 107),
    # of files anywhere that the user owns, where no namespace hides them; Landlock has no rights for these
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "truncate": (76, 45),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "fanotify_mark": (301, 263),
    "sync": (162, 81),
    "syncfs": (306, 267),
}
_FILE_MAKERS = {
    "creat": (85, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "link": (86, None),
    "linkat": (265, 37),
}
"""Calls that make a file; `open` and `openat` do with O_CREAT."""

_AUDIT = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_ALLOW, _KILL, _ERRNO, _ASK = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_EPERM, _ENOSYS = 1, 38
_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_REFUSE = (_RETURN, 0, 0, _ERRNO | _EPERM)
_PASS = (_RETURN, 0, 0, _ALLOW)

_CLONE_THREAD = 0x10000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF
_O_CREAT, _O_TRUNC, _O_ACCMODE = 0x40, 0x200, 3
_SIGNALLING = {"F_SETOWN": 8, "F_SETSIG": 10, "F_SETOWN_EX": 15, "F_SETLEASE": 1024, "F_NOTIFY": 1026}
"""Commands of fcntl by which the kernel sends a signal of the caller's choice, to a process of the caller's choice."""
_HARMLESS_IOCTLS = {
    "TCGETS": 0x5401,
    "TCGETS2": 0x802C542A,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "FICLONE": 0x40049409,
}
"""What Python's standard library asks of files; FIOSETOWN, FIOASYNC, a terminal's TIOCSTI and chattr are not in it."""

Instruction = tuple[int, int, int, int]


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known here."""
    return sys.platform == "linux" and MACHINE in _AUDIT and struct.calcsize("P") == 8


def number(name: str) -> int:
    """A system call's number on this machine."""
    found = _COMMON[name][_AUDIT[MACHINE][0]]
    assert found is not None, name
    return found


def seccomp_filter(*, meter_threads: bool = False, meter_files: bool = False) -> bytes | None:
    """The filter as a BPF program; None where its system-call numbers are not known here.

    Args:
        meter_threads: the kernel asks the listener about every new thread and every thread that ends.
        meter_files: and about every call that makes a file.
    """
    if not supported():
        return None
    column, architecture = _AUDIT[MACHINE]
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, _NUMBER_AT)]
    if MACHINE == "x86_64":  # the x32 calls are the same ones under other numbers
        code += [(_AT_LEAST, 0, 1, 0x40000000), _REFUSE]
    code += _any_of([numbers[column] for numbers in _FORBIDDEN.values()], _REFUSE)
    # Their flags lie in memory, out of a filter's sight; libc falls back to clone and openat.
    code += _any_of([number("clone3"), number("openat2")], (_RETURN, 0, 0, _ERRNO | _ENOSYS))
    thread = (_RETURN, 0, 0, _ASK) if meter_threads else _PASS
    file = (_RETURN, 0, 0, _ASK) if meter_files else _PASS
    if meter_threads:
        code += _any_of([number("exit")], thread)
    if meter_files:
        code += _any_of([numbers[column] for numbers in _FILE_MAKERS.values()], file)
    for name, rule in _by_argument(thread, file).items():
        numbers = _COMMON[name][column]
        if numbers is not None:
            # A rule ends in an answer of its own, so that what follows it is reached by other calls only.
            code += [(_EQUAL, 0, len(rule), numbers), *rule]
    code += [_PASS]
    return b"".join(struct.pack("HBBI", *one) for one in code)


def _any_of(numbers: Sequence[int | None], answer: Instruction) -> list[Instruction]:
    """`answer` for each of these system calls, and nothing for the others."""
    known = [one for one in numbers if one is not None]
    assert len(known) < 256, "a jump reaches 255 instructions"
    jumps = [(_EQUAL, len(known) - at, 0, one) for at, one in enumerate(known)]
    return [*jumps, (_JUMP, 0, 0, 1), answer]


def _by_argument(thread: Instruction, file: Instruction) -> dict[str, list[Instruction]]:
    """Rules that look at arguments; each ends in an answer, and leaves by it."""
    return {
        "clone": [_argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), _REFUSE, thread],
        "prlimit64": [_argument(0), (_EQUAL, 1, 0, 0), _REFUSE, _PASS],  # of this process only
        "fcntl": [_argument(1), *_any_of(list(_SIGNALLING.values()), _REFUSE), _PASS],
        "ioctl": [_argument(1), *_any_of(list(_HARMLESS_IOCTLS.values()), _PASS), _REFUSE],
        # asyncio needs a pair of streams. One of datagrams could send to any socket that has a path or a name.
        "socketpair": [
            *(_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _REFUSE),
            *(_argument(1), (_AND, 0, 0, _SOCK_TYPE), (_EQUAL, 1, 0, _SOCK_STREAM), _REFUSE, _PASS),
        ],
        "open": _opening(1, file),
        "openat": _opening(2, file),
    }


def _opening(flags_at: int, file: Instruction) -> list[Instruction]:
    """Landlock before version 3 has no right for emptying a file, which open does when it asks to read only, too."""
    mode = [_argument(flags_at), (_AND, 0, 0, _O_TRUNC | _O_ACCMODE)]
    emptied = _any_of([_O_TRUNC, _O_TRUNC | _O_ACCMODE], _REFUSE)
    return [*mode, *emptied, _argument(flags_at), (_ANY_BIT, 1, 0, _O_CREAT), _PASS, file]


def _argument(index: int) -> Instruction:
    """The lower half of an argument, which is all that the kernel reads of the flags and commands looked at here."""
    return (_LOAD, 0, 0, _FIRST_ARGUMENT_AT + 8 * index)
