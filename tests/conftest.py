"""What every test gets: no network, one thread, a seed of its own, and a home in which nobody has ever lived.

The suite must say the same on a developer's machine as on a new one: a model that was pulled into the cache, a token of
the hub or a key in the environment would let a test pass, or fail, for a reason that is not in the code.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.long import pattern_of, unmet

# Before any test module is imported: `huggingface_hub` and others read their folders once, at import. The main process
# makes the folder, and the processes that xdist and tests start find it in their environment.
_OWNER = "POSTTRAIN_TEST_HOMES" not in os.environ
HOMES = Path(tempfile.mkdtemp(prefix="posttrain-tests-") if _OWNER else os.environ["POSTTRAIN_TEST_HOMES"])
os.environ["POSTTRAIN_TEST_HOMES"] = str(HOMES)

FOLDERS = {"HOME": "", "XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
"""Where programs keep what is the user's, below his home."""
FORGOTTEN = (
    *("POSTTRAIN_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    *("PYTHONIOENCODING", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM_PROGRAM"),
)
"""Variables of the user's that would move a cache, sign him in, or change what is printed."""


def homeless(home: Path) -> dict[str, str]:
    """The variables that make `home`, which is made here, everything that a user has."""
    places = {name: home / below for name, below in FOLDERS.items()}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return {name: str(place) for name, place in places.items()}


for _name in FORGOTTEN:
    os.environ.pop(_name, None)
# Hundreds of tests start the command, and each would compile the whole package again: a second of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ |= homeless(HOMES / os.environ.get("PYTEST_XDIST_WORKER", "main"))

# Before anything imports transformers or tokenizers: a test never reaches for a hub, and never forks busy threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test cuts the power: waiting for the disk after every line of a run folder would take as long as training does.
os.fsync = lambda descriptor: None

# Derandomised: the same examples on every machine, so that a failure is the code's and not the day's.
settings.register_profile(
    "posttrain", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("posttrain")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if pattern_of(item.nodeid) is not None:
            item.add_marker(pytest.mark.long)
    if not any("::" in argument for argument in config.args):  # whole files
        lost = unmet([item.nodeid for item in items], {item.nodeid.partition("::")[0] for item in items})
        if lost:
            raise pytest.UsageError(f"tests/long.py: no test meets {', '.join(lost)}")


def pytest_collection_finish() -> None:
    """Saves are read back by forked processes; what imports no model has no use for one.

    What the imports and the collection left stays: looking through it for garbage again and again takes seconds.
    """
    gc.freeze()
    if "posttrain.models.folders.export" in sys.modules:
        from posttrain.models.folders import export
        from tests.read_back import forked

        export._start = forked  # type: ignore[assignment]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Neighbours stay in one worker, so that it alone makes what a module shares; the one that is done takes over."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_unconfigure() -> None:
    if _OWNER:
        shutil.rmtree(HOMES, ignore_errors=True)


_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new home for every test, so that none finds what another left; its subprocesses inherit it."""
    # Counted here: `mktemp` reads the whole folder for its next number, which thousands of tests would make long.
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(_NUMBERS))
    for name, place in homeless(home).items():
        monkeypatch.setenv(name, place)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seeds torch where a test module uses it; modules that never import torch do not pay for it."""
    if "torch" in sys.modules:
        import torch

        # Of the CPU alone: `torch.manual_seed` notes the caller's stack for every device that is never used.
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(0)
    yield
