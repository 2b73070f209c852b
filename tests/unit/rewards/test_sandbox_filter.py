"""The filter's answers, computed from its instructions: for arm64 too, which the machine of these tests need not be."""

from __future__ import annotations

import struct

import pytest

from posttrain.rewards.sandbox.inside import seccomp

ALLOW, REFUSE, UNKNOWN, ASK, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x7FC00000, 0x80000000
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
READ = {"x86_64": 0, "aarch64": 63}
THREAD, PROCESS = 0x3D0F00, 0x1200011
"""The flags of glibc's pthread_create and fork."""


@pytest.fixture(params=list(MACHINES))
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(seccomp, "MACHINE", request.param)
    return str(request.param)


def answer(filter_: bytes | None, number: int, *arguments: int, architecture: int) -> int:
    """What the kernel would do: the classic BPF instructions that the filter consists of, one after the other."""
    assert filter_ is not None
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(*arguments, *[0] * 6)[:6])
    code = [struct.unpack_from("HBBI", filter_, at) for at in range(0, len(filter_), 8)]
    held, at = 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        match operation:
            case 0x20:
                held = struct.unpack_from("=I", data, value)[0]
            case 0x54:
                held &= value
            case 0x05:
                at += value
            case 0x06:
                return int(value)
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[operation]
                at += yes if holds else no
            case _:
                raise AssertionError(f"an instruction that this test does not know: {operation:#x}")


CALLS = {
    "a thread": ("clone", (THREAD,), ASK),
    "a process": ("clone", (PROCESS,), REFUSE),
    "clone3": ("clone3", (), UNKNOWN),
    "openat2": ("openat2", (), UNKNOWN),
    "the end of a thread": ("exit", (0,), ASK),
    "its own limits": ("prlimit64", (0,), ALLOW),
    "another's limits": ("prlimit64", (1234,), REFUSE),
    "F_SETFL": ("fcntl", (3, 4), ALLOW),
    "F_SETOWN": ("fcntl", (3, 8), REFUSE),
    "F_SETSIG": ("fcntl", (3, 10), REFUSE),
    "F_SETOWN, with a half that the kernel does not read": ("fcntl", (3, 1 << 32 | 8), REFUSE),
    "TCGETS": ("ioctl", (3, 0x5401), ALLOW),
    "FIOSETOWN": ("ioctl", (3, 0x8901), REFUSE),
    "TIOCSTI": ("ioctl", (3, 0x5412), REFUSE),
    "a pair of streams": ("socketpair", (1, 0x80801), ALLOW),
    "a pair of datagrams": ("socketpair", (1, 0x80802), REFUSE),
    "a pair of raw sockets": ("socketpair", (1, 3), REFUSE),
    "a pair of another family": ("socketpair", (30, 1), REFUSE),
    "open to read": ("openat", (0, 0, 0), ALLOW),
    "open to write": ("openat", (0, 0, 0x201), ALLOW),
    "open to make": ("openat", (0, 0, 0x241), ASK),
    "open to empty": ("openat", (0, 0, 0x200), REFUSE),
    "open in the third mode to empty": ("openat", (0, 0, 0x203), REFUSE),
    "open to read, empty and make": ("openat", (0, 0, 0x240), REFUSE),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_by_their_arguments(machine: str, name: str) -> None:
    call, arguments, wanted = CALLS[name]
    metered = seccomp.seccomp_filter(meter_threads=True, meter_files=True)
    number = seccomp.number(call)
    assert answer(metered, number, *arguments, architecture=MACHINES[machine]) == wanted
    # Without a listener a question would be an error: a filter that is not metered asks none.
    plain = answer(seccomp.seccomp_filter(), number, *arguments, architecture=MACHINES[machine])
    assert plain == (ALLOW if wanted == ASK else wanted)


def test_calls_of_the_lists(machine: str) -> None:
    metered = seccomp.seccomp_filter(meter_threads=True, meter_files=True)
    column = list(MACHINES).index(machine)
    for calls, wanted in ((seccomp._FORBIDDEN, REFUSE), (seccomp._FILE_MAKERS, ASK)):
        numbers = {name: pair[column] for name, pair in calls.items() if pair[column] is not None}
        answers = {
            name: answer(metered, number or 0, architecture=MACHINES[machine]) for name, number in numbers.items()
        }
        assert answers == dict.fromkeys(numbers, wanted)
    assert answer(metered, READ[machine], architecture=MACHINES[machine]) == ALLOW


def test_calls_of_another_architecture_end_the_program(machine: str) -> None:
    assert answer(seccomp.seccomp_filter(), 0, architecture=0x40000003) == KILL
    x32 = answer(seccomp.seccomp_filter(), 0x40000000 | 1, architecture=MACHINES[machine])
    assert x32 == (REFUSE if machine == "x86_64" else ALLOW)
