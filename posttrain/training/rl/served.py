"""The served engine of a stage: one server, several, or those that the stage starts, behind one interface.

served = served_sampler(stage, settings, policy, longest=2048, around=Surroundings(folder, tokenizer, start, say))
served.engine, served.close()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.engines import LaunchSettings, VLLMServedSettings
from posttrain.config.online import SamplingStage
from posttrain.errors import ConfigError
from posttrain.models.folders.loading import LoadedModel, resolve
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.vllm_install import Installed, Needs, cache_bytes, installed
from posttrain.rollout.vllm_launch import SERVED_NAME, LaunchedServers
from posttrain.rollout.vllm_pool import PoolCounts, ServerPool
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.weight_folder import write_whole
from posttrain.rollout.weight_sync import ScoreEach, SyncedEngine

SERVERS = "servers"
"""Folder within a stage's: the logs of the servers that it starts, and the model that they start with."""
POOL_PATIENCE = 2.0
"""Seconds for which one server of several is tried again before another is asked."""
ROUNDED_TO = 64
"""Tokens; a server's longest sequence is rounded up to a multiple."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What servers need that a stage starts: Surroundings(Path("runs/a/grpo"), tokenizer, "embedded", print)."""

    folder: Path
    """The stage's."""
    tokenizer: Any
    """The policy's, for stop strings."""
    start: str | Path | LoadedModel
    """What the stage starts from."""
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Served:
    """An engine of servers, and what a stage does with it."""

    engine: SyncedEngine
    where: str
    """For errors."""
    close: Callable[[], None]
    score_each: ScoreEach | None = None
    prove_with: Callable[[Callable[[str, ServedEngine], None]], None] = lambda prove: None
    counts: Callable[[], PoolCounts | None] = lambda: None


def served_sampler(
    stage: SamplingStage, settings: VLLMServedSettings, policy: Policy, longest: int, around: Surroundings | None
) -> Served:
    """The engine that the settings name; servers of the stage's own are started, and answer.

    Args:
        longest: tokens of the longest prompt and its answer.

    Raises:
        ConfigError: a server's sequences are too short.
        EngineError: a server cannot be reached, or does not start.
    """
    if settings.launch is not None:
        assert around is not None
        return _launched(stage, settings, settings.launch, policy, longest, around)
    engines = [server_of(settings, url) for url in settings.addresses]
    for engine in engines:
        _require_room(stage, engine, longest)
    if settings.url is not None:
        (engine,) = engines
        return Served(engine, f"{settings.url} ({engine.served_model().name})", engine.close)
    pool = ServerPool(
        engines,
        folder=None if settings.weights_folder is None else Path(settings.weights_folder),
        requests=settings.requests,
        patience=settings.patience,
        say=None if around is None else around.say,
    )
    return _of_pool(pool, ", ".join(settings.urls), pool.close)


def server_of(settings: VLLMServedSettings, url: str) -> ServedEngine:
    """One server that somebody else runs."""
    return ServedEngine(
        url,
        folder=None if settings.weights_folder is None else Path(settings.weights_folder),
        served_name=settings.served_name,
        requests=settings.requests,
        patience=settings.patience if settings.url is not None else min(POOL_PATIENCE, settings.patience),
    )


def _launched(
    stage: SamplingStage,
    settings: VLLMServedSettings,
    launch: LaunchSettings,
    policy: Policy,
    longest: int,
    around: Surroundings,
) -> Served:
    found = installed(launch.python, f"{stage.name}: engine.launch.python")
    folder = around.folder / SERVERS
    model = _model_folder(stage, policy, around, folder / "model", found)
    config: Any = policy.model.config
    servers = LaunchedServers(
        launch, model, folder, Needs(_rounded(longest, config), _dtype(policy, found), cache_bytes(config)), found
    )
    around.say(
        f"starting {launch.servers} vLLM {found.version} {'server' if launch.servers == 1 else 'servers'}; {folder}"
    )
    engines = [
        ServedEngine(url, served_name=SERVED_NAME, requests=settings.requests, patience=POOL_PATIENCE)
        for url in servers.start()
    ]
    pool = ServerPool(
        engines,
        folder=None if settings.weights_folder is None else Path(settings.weights_folder),
        untied=found.cpu,
        requests=settings.requests,
        revive=servers.revive,
        say=around.say,
    )
    servers.watch(pool)

    def close() -> None:
        pool.close()  # first: a server that ends now is not lost
        servers.close()

    return _of_pool(pool, f"servers of this run, {folder}", close)


def _of_pool(pool: ServerPool, where: str, close: Callable[[], None]) -> Served:
    return Served(pool, where, close, pool.score_each, pool.prove_with, lambda: pool.counts)


def _model_folder(stage: SamplingStage, policy: Policy, around: Surroundings, folder: Path, found: Installed) -> Path:
    """What servers are started with: the stage's start where it is a whole model as they can read it, else a copy."""
    model: Any = policy.model
    config = model.config.get_text_config()
    # On a CPU a tied pair has to be written apart; see `write_whole`.
    readable = not (found.cpu and config.tie_word_embeddings) and not stage.tokens
    if readable and not isinstance(around.start, LoadedModel):
        source = resolve(around.start)
        if source.layout == "model" and (source.folder / "config.json").is_file():
            return source.folder.absolute()
    write_whole(model, folder, untied=found.cpu)
    around.tokenizer.save_pretrained(folder)
    return folder.absolute()


def _rounded(longest: int, config: Any) -> int:
    rounded = -(-longest // ROUNDED_TO) * ROUNDED_TO
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return rounded if positions is None else min(rounded, max(positions, longest))


def _dtype(policy: Policy, found: Installed) -> str:
    # A CPU build's bf16 is emulated on most processors, and further from the trainer's than it saves time.
    autocast = policy.autocast
    return "float32" if autocast is None or found.cpu else str(autocast).removeprefix("torch.")


def _require_room(stage: SamplingStage, engine: ServedEngine, longest: int) -> None:
    served = engine.served_model()
    if served.longest is not None and longest > served.longest:
        raise ConfigError(
            "the server's sequences are too short for the longest prompt and its answer",
            where=f"{stage.name}: engine.url",
            found=f"{longest:,} tokens; {engine.server.url} serves {served.name} with {served.longest:,}",
            remedy=f"start the server with --max-model-len {longest} or more, or set max_length to {served.longest}",
        )
