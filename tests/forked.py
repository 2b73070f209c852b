"""Fresh processes without the seconds that each would need to import torch and transformers.

A server that has imported these packages, and not one line of posttrain, is started once for each worker of the suite;
every process is forked from it. It shares no module, no random state and no memory with the test that asks for it, as
a process that begins at its interpreter does not. This module is imported there, so it imports nothing itself.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType

PRELOADED = (
    *("numpy", "torch", "torch.distributions", "tokenizers", "safetensors.torch", "peft", "jinja2"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.generation.utils"),
)


class Forked:
    """A script's process as `subprocess.Popen` shows it, as far as a save looks at one."""

    def __init__(self, script: Path, argument: Path, words: Path, variables: dict[str, str]):
        """As `python script argument` with these variables, both of its outputs in the file `words`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._process: ForkServerProcess = context.Process(
            target=_run, args=(str(script), str(argument), str(words), variables)
        )
        # Whatever was started as a script (pytest, tools/mutate.py) would be run again in every process.
        own, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            self._process.start()
        finally:
            sys.modules["__main__"] = own

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run(script: str, argument: str, words: str, variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    output = os.open(words, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [script, argument]
    runpy.run_path(script, run_name="__main__")
