"""Programs that want to do harm, to take what others need, or to stay; none may succeed, on either set of layers."""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from posttrain.rewards.sandbox import Sandbox
from tests.unit.rewards.programs import TESTS, TRY, children, does


def test_no_file_outside_is_written_or_read(sandbox: Sandbox, tmp_path: Path) -> None:
    if not sandbox.layers["landlock"] and not sandbox.layers["mount namespace"]:
        return
    secret = tmp_path / "secret.txt"
    secret.write_text("tests and answers")
    secret.chmod(0o666)
    tmp_path.chmod(0o777)
    program = (
        "def read(): open(SECRET).read()\ndef write(): open(SECRET, 'w').write('x')\n"
        "def add(): open(FOLDER + '/new', 'w').write('x')\ndef usr(): open('/usr/new', 'w')\n"
        "def etc(): open('/etc/passwd').read()\ndef folder(): os.listdir(FOLDER)\ndef remove(): os.remove(SECRET)\n"
        "def link():\n    os.symlink(SECRET, 'link')\n    open('link', 'w').write('x')\n"
        "def hard(): os.link(SECRET, 'hard')\ndef move(): os.rename(SECRET, 'moved')\n"
        "def climb():\n    os.chdir('..')\n    open('new', 'w').write('x')\n"
        "def tests(): open(ROOT + '/tests/unit/rewards/test_rewards_sandbox.py').read()\n"
        "def data(): open(PACKAGES + '/pip/__init__.py').read()\ndef scratch(): open('x', 'w').write('x')\n"
        "DEEDS = [scratch, read, write, add, usr, etc, folder, remove, link, hard, move, climb, tests, data]\n" + TRY
    )
    root = str(Path(__file__).parents[3])
    places = {"SECRET": str(secret), "FOLDER": str(tmp_path), "ROOT": root}
    places["PACKAGES"] = sysconfig.get_path("purelib", vars={"base": sys.base_prefix})
    assert does(sandbox, program, **places) == "scratch"
    assert secret.read_text() == "tests and answers"
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


def test_the_scratch_folder_is_there_and_its_own(sandbox: Sandbox) -> None:
    program = (
        "import os\ndef f():\n    before = os.listdir('.')\n    open('mine', 'w').write('x')\n"
        "    return str(before) + open('mine').read()\n"
    )
    assert does(sandbox, program) == "[]x"
    assert does(sandbox, program) == "[]x", "a program sees what an earlier one wrote"


def test_files_are_limited(sandbox: Sandbox) -> None:
    program = (
        "def big():\n    with open('big', 'wb') as file: file.write(bytes(64 << 20))\n"
        "def many():\n    keep = [open(str(i), 'w') for i in range(5000)]\nDEEDS = [big, many]\n" + TRY
    )
    assert does(sandbox, program) == "nothing"


def test_there_is_no_network(sandbox: Sandbox) -> None:
    heard: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)

        def listen() -> None:
            try:
                heard.append(server.accept())
            except TimeoutError:
                return

        thread = threading.Thread(target=listen)
        thread.start()
        program = (
            "import socket\ndef tcp(): socket.create_connection(('127.0.0.1', PORT), timeout=1)\n"
            "def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))\n"
            "def unix(): socket.socket(socket.AF_UNIX).connect('\\0x')\n"
            "def raw():\n    import ctypes\n    assert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0\n"
            "DEEDS = [tcp, udp, unix, raw]\n" + TRY
        )
        assert does(sandbox, program, PORT=server.getsockname()[1]) == "nothing"
        thread.join()
    assert heard == []


def test_no_process_is_made_signalled_or_traced(sandbox: Sandbox) -> None:
    victim = os.getpid()
    program = (
        "import ctypes, signal, subprocess, threading, multiprocessing, resource\nlibc = ctypes.CDLL(None)\n"
        "def fork():\n    if not os.fork(): os._exit(0)\n"
        "def bomb():\n    while True: os.fork()\n"
        "def daemon():\n    if not os.fork():\n        os.setsid()\n        os.fork()\n"
        "def spawn(): os.posix_spawn('/bin/sleep', ['sleep', '1000'], {})\n"
        "def popen(): subprocess.Popen(['/bin/sleep', '1000'])\n"
        "def pool(): multiprocessing.get_context('fork').Process(target=print).start()\n"
        "def vfork(): assert libc.syscall(58) >= 0\n"
        "def clone(): assert libc.syscall(56, 17, 0, 0, 0, 0) >= 0\n"
        "def parent(): os.kill(os.getppid(), signal.SIGTERM)\n"
        "def everyone(): os.kill(-1, signal.SIGTERM)\n"
        "def group(): os.killpg(0, 15)\n"
        "def him(): os.kill(VICTIM, signal.SIGTERM)\n"
        "def trace(): assert libc.ptrace(16, VICTIM, 0, 0) == 0\n"
        "def lower(): resource.prlimit(VICTIM, resource.RLIMIT_CORE, (0, 0))\n"
        "def higher(): resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
        "def unshare(): assert libc.unshare(0x10000000) == 0\n"
        "def mount(): assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0\n"
        "def memory(): os.memfd_create('x')\n"
        "def outlive(): assert libc.prctl(1, 0, 0, 0, 0) == 0\n"
        "DEEDS = [fork, bomb, daemon, spawn, popen, pool, vfork, clone, parent, everyone, group, him, trace, lower,\n"
        "         higher, unshare, mount, memory, outlive]\n" + TRY
    )
    assert does(sandbox, program, VICTIM=victim) == "nothing"


def test_nothing_is_left_running(sandbox: Sandbox) -> None:
    before = children(os.getpid())
    program = (
        "import os, threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
        "try:\n    os.fork()\nexcept OSError: pass\ndef f(x): return x + 1"
    )
    assert sandbox.run_tests(program, TESTS).passed
    assert children(os.getpid()) == before


def test_threads_are_allowed(sandbox: Sandbox) -> None:
    program = (
        "import threading, asyncio\ndef f(x):\n    out = []\n"
        "    thread = threading.Thread(target=lambda: out.append(x + 1))\n    thread.start()\n    thread.join()\n"
        "    async def same(): return out[0]\n    return asyncio.run(same())"
    )
    assert sandbox.run_tests(program, TESTS).passed


def test_the_environment_is_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    with Sandbox() as fresh:
        told = does(fresh, "import os\ndef f(): return ' '.join(sorted(os.environ))")
    assert told == "HOME LANG PATH TMPDIR"


def test_the_programs_library_is_not_posttrain(sandbox: Sandbox) -> None:
    assert does(sandbox, "def f():\n    import posttrain.types\n    return 'x'").startswith("ModuleNotFoundError")


def test_what_it_was_given_is_not_changed_for_the_tests(sandbox: Sandbox) -> None:
    tests = "x = [3, 1, 2]\nassert f(x) == sorted(x)"
    assert not sandbox.run_tests("def f(x):\n    x.clear()\n    return []", tests).passed
    assert sandbox.run_tests("def f(x): return sorted(x)", tests).passed


def test_the_server_ends_with_its_caller() -> None:
    one = Sandbox()
    below = children(one._lanes[0]._process.pid)
    one.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)
