"""Programs that reach for what Landlock has no right for, or for what the whole machine shares."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from posttrain.rewards.sandbox import Limits, Sandbox
from posttrain.rewards.sandbox.inside import seccomp
from tests.unit.rewards.programs import FILES, PATIENCE, RIGHT, TESTS, TRY, does

COLUMN = {"x86_64": 0, "aarch64": 1}.get(seccomp.MACHINE, 0)

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="the filter is of Linux on x86-64 and arm64")


def test_attributes_of_files_outside_are_not_changed(layers: Sandbox, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret.txt", tmp_path / "folder"
    secret.write_text("tests and answers")
    folder.mkdir()
    secret.chmod(0o600)
    os.utime(secret, (1000, 1000))
    os.setxattr(secret, "user.mine", b"1")
    program = (
        "def chmod(): os.chmod(SECRET, 0o777)\ndef folder(): os.chmod(FOLDER, 0)\ndef times(): os.utime(SECRET)\n"
        "def by_descriptor(): os.chmod('/proc/self/fd/' + str(os.open(SECRET, os.O_PATH)), 0o777)\n"
        "def owner(): os.chown(SECRET, os.getuid(), os.getgid())\ndef link(): os.lchown(SECRET, -1, os.getgid())\n"
        "def add(): os.setxattr(SECRET, 'user.x', b'1')\ndef drop(): os.removexattr(SECRET, 'user.mine')\n"
        "def empty(): os.truncate(SECRET, 0)\ndef open_to_empty(): os.open(SECRET, os.O_RDONLY | os.O_TRUNC)\n"
        "def third_mode(): os.open(SECRET, 3 | os.O_TRUNC)\n"
        "DEEDS = [chmod, folder, times, by_descriptor, owner, link, add, drop, empty, open_to_empty, third_mode]\n"
        + TRY
    )
    assert does(layers, program, SECRET=str(secret), FOLDER=str(folder)) == "nothing"
    assert secret.read_text() == "tests and answers"
    assert secret.stat().st_mode & 0o777 == 0o600 and secret.stat().st_mtime == 1000
    assert os.listxattr(secret) == ["user.mine"]
    assert folder.stat().st_mode & 0o777 == 0o755 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_that_may_be_read_is_not_emptied_by_opening_it(layers: Sandbox) -> None:
    """The standard library is such a file, and the user's own where Python is; Landlock forbids it from version 3."""
    program = (
        "def write(): open('x', 'w').write('text')\ndef empty(): os.open('x', os.O_RDONLY | os.O_TRUNC)\n"
        "def third_mode(): os.open('x', 3 | os.O_TRUNC)\ndef read(): assert open('x').read() == 'text'\n"
        "def again(): open('x', 'w').write('')\nDEEDS = [write, empty, third_mode, read, again]\n" + TRY
    )
    assert does(layers, program) == "write,read,again"


def test_no_signal_is_sent_through_a_descriptor(layers: Sandbox) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as victim:
        program = (
            "import fcntl, socket, struct\na, b = socket.socketpair()\npid = struct.pack('i', VICTIM)\n"
            "def own():\n    fcntl.fcntl(a, 8, VICTIM)\n    fcntl.fcntl(a, 10, 9)\n    shoot()\n"
            "def own_by_type():\n    fcntl.fcntl(a, 15, struct.pack('ii', 1, VICTIM))\n    shoot()\n"
            "def own_by_ioctl():\n    fcntl.ioctl(a, 0x8901, pid)\n    shoot()\n"
            "def own_by_socket():\n    fcntl.ioctl(a, 0x8902, pid)\n    shoot()\n"
            "def which_signal(): fcntl.fcntl(a, 10, 9)\n"
            "def asynchronous(): fcntl.ioctl(a, 0x5452, struct.pack('i', 1))\n"
            "def lease(): fcntl.fcntl(os.open('x', os.O_CREAT), 1024, 0)\n"
            "def shoot():\n    fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)\n"
            "    b.send(b'x')\n"
            "DEEDS = [own, own_by_type, own_by_ioctl, own_by_socket, which_signal, asynchronous, lease]\n" + TRY
        )
        told = does(layers, program, VICTIM=victim.pid)
        alive = victim.poll() is None
        victim.kill()
    assert told == "nothing"
    assert alive, "the program killed a process outside"


def test_no_datagram_reaches_a_socket_outside(layers: Sandbox, tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named,
    ):
        place = os.path.relpath(tmp_path / "log")
        log.bind(place if len(place) < 100 else str(tmp_path / "log"))
        named.bind(f"\0posttrain-test-{os.getpid()}")
        log.setblocking(False)
        named.setblocking(False)
        program = (
            "import socket\n"
            "def send(kind, to):\n    a, b = socket.socketpair(socket.AF_UNIX, kind)\n    a.sendto(b'x', to)\n"
            "def datagram(): send(socket.SOCK_DGRAM, PLACE)\ndef raw(): send(socket.SOCK_RAW, PLACE)\n"
            "def abstract(): send(socket.SOCK_DGRAM, ABSTRACT)\ndef stream(): send(socket.SOCK_STREAM, PLACE)\n"
            "def message():\n    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            "    a.sendmsg([b'x'], [], 0, PLACE)\n"
            "def allowed():\n    a, b = socket.socketpair()\n    a.send(b'x')\n"
            "DEEDS = [datagram, raw, abstract, stream, message, allowed]\n" + TRY
        )
        places = {"PLACE": str(tmp_path / "log"), "ABSTRACT": named.getsockname().decode()}
        assert does(layers, program, **places) == "allowed"
        for one in (log, named):
            with pytest.raises(BlockingIOError):
                one.recv(10)


def test_every_call_of_the_list_is_refused(layers: Sandbox) -> None:
    """By its number, for what Python has no function of. The arguments are such that none would do anything."""
    numbers = {name: pair[COLUMN] for name, pair in seccomp._FORBIDDEN.items() if pair[COLUMN] is not None}
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ndef refused(number):\n    ctypes.set_errno(0)\n"
        "    answer = libc.syscall(*map(ctypes.c_long, (number, -1, -1, -1, -1, -1, -1)))\n"
        "    return answer == -1 and ctypes.get_errno() == 1\n"
        "def f(): return ' '.join(name for name, number in NUMBERS.items() if not refused(number)) or 'none'\n"
    )
    assert does(layers, program, NUMBERS=numbers) == "none"


def test_an_inode_is_not_watched(layers: Sandbox) -> None:
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef watch():\n    number = libc.inotify_init()\n"
        "    assert number >= 0 and libc.inotify_add_watch(number, b'/etc', 0xfff) >= 0\nDEEDS = [watch]\n" + TRY
    )
    assert does(layers, program) == "nothing"


# ---------------------------------------------------------------- what the machine shares

NATIVE_THREADS = (
    "import ctypes\nlibc = ctypes.CDLL(None)\nstack, thread = ctypes.create_string_buffer(256), ctypes.c_ulong()\n"
    "libc.pthread_attr_init(stack)\nlibc.pthread_attr_setstacksize(stack, ctypes.c_size_t(16384))\n"
    "pause = ctypes.cast(libc.pause, ctypes.c_void_p)\n"
    "def made(): return not libc.pthread_create(ctypes.byref(thread), stack, pause, None)\n"
    "def f(): return str(sum(made() for _ in range(COUNT)))\n"
)
"""Threads with stacks so small that no limit of memory meets them."""


def test_threads_are_counted(layers: Sandbox) -> None:
    assert layers.layers["metered threads"]
    assert does(layers, NATIVE_THREADS, COUNT=1000) == "63", "the program's first thread counts too"


def test_threads_that_ended_make_room(layers: Sandbox) -> None:
    program = (
        "import threading\ndef f(x):\n    for _ in range(100):\n        thread = threading.Thread(target=print)\n"
        "        thread.start()\n        thread.join()\n    return x + 1"
    )
    verdict = layers.run_tests(program, "assert f(2) == 3", seconds=PATIENCE)
    assert verdict.passed, verdict.message


def test_a_right_program_beside_a_bomb_of_threads_passes() -> None:
    with Sandbox(Limits(seconds=PATIENCE, memory_mb=256), lanes=2) as two:
        bomb = NATIVE_THREADS.replace("COUNT", "2000")
        beside = threading.Thread(target=two.run_tests, args=(bomb, "while True: f()"), kwargs={"seconds": 1.0})
        beside.start()
        verdicts = [two.run_tests(RIGHT, TESTS) for _ in range(5)]
        beside.join()
    assert all(verdict.passed for verdict in verdicts), verdicts


def test_files_are_counted(layers: Sandbox) -> None:
    program = (
        "def f():\n    import os\n    made = 0\n    for i in range(100):\n        for make in (\n"
        "            lambda: os.close(os.open(f'{i}', os.O_CREAT | os.O_WRONLY)), lambda: os.mkdir(f'{i}.d'),\n"
        "            lambda: os.symlink('0', f'{i}.s'), lambda: os.mkfifo(f'{i}.p')):\n"
        "            try:\n                make()\n                made += 1\n            except OSError: pass\n"
        "    return str(made)\n"
    )
    assert FILES - 10 <= int(does(layers, program)) <= FILES


def test_a_deep_tree_is_removed(layers: Sandbox) -> None:
    program = (
        "import os\ndef f(x):\n    for _ in range(1500):\n        try:\n            os.mkdir('d')\n"
        "            os.chdir('d')\n        except OSError: break\n    return x + 1\n"
    )
    assert layers.run_tests(program, TESTS, seconds=PATIENCE).passed
    assert does(layers, "import os\ndef f(): return str(os.listdir('.'))") == "[]"
    base = layers._lanes[0]._folder
    assert not base or os.listdir(base) == []


def test_attributes_of_its_own_files_are_refused_with_a_clear_error(layers: Sandbox) -> None:
    program = "import os\ndef f():\n    open('x', 'w').close()\n    os.chmod('x', 0o600)\n"
    assert does(layers, program) == "PermissionError: [Errno 1] Operation not permitted: 'x'"
