"""What a stage asks of other processes: its engine's server and its judges' endpoints, looked for before a model loads.

    require_servers(stage)          # EngineError or RewardError, in a moment, where nobody listens

Those that the stage starts itself (`engine.launch`) are not among them. There is nothing to wait for at the begin; a
server that goes away later is waited for as its settings say (`engine.patience`, the judge's `retries`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from posttrain.config.engines import VLLMServedSettings
from posttrain.config.online import SamplingStage
from posttrain.config.rewards import JudgeReward
from posttrain.errors import EngineError, RewardError
from posttrain.rewards.building import beside
from posttrain.rewards.endpoint import why_unreachable
from posttrain.rollout.vllm_server import COMMAND


def require_servers(stage: SamplingStage) -> None:
    """Look once, for a moment, whether somebody listens at each address of the stage.

    Raises:
        EngineError: nobody listens where the engine shall be.
        RewardError: nobody listens where a judge shall be.
    """
    engine = stage.engine
    addresses = engine.addresses if isinstance(engine, VLLMServedSettings) else ()
    for url in addresses:
        if (why := why_unreachable(url)) is None:
            continue
        raise EngineError(
            "the engine cannot be reached",
            where=f"{stage.name}: engine.{'url' if len(addresses) == 1 else 'urls'}",
            found=f"{url}: {why}",
            remedy=f"start it, wait until it answers, and run the same command again: {COMMAND}",
        )
    for key, specs in (("rewards", stage.rewards), ("examine.rewards", stage.examine.rewards)):
        for judge in _judges(specs):
            if _has_answers(judge, stage.modules) or (why := why_unreachable(judge.url)) is None:
                continue
            raise RewardError(
                f"the judge `{judge.model}` cannot be reached",
                where=f"{stage.name}: {key}, url",
                found=f"{judge.url}: {why}",
                remedy="start its endpoint, or correct the url",
            )


def _judges(specs: Iterable[object]) -> Iterator[JudgeReward]:
    """Also those inside other rewards: `cosine` shapes one, `of: {kind: judge, ...}`."""
    for spec in specs:
        if isinstance(spec, JudgeReward):
            yield spec
        elif isinstance(spec, BaseModel):
            yield from _judges(value for _, value in spec if isinstance(value, BaseModel))


def _has_answers(judge: JudgeReward, modules: str | Path | None) -> bool:
    """Whether it may do without its endpoint: a run that is repeated finds all its answers in the cache."""
    if judge.cache is None:
        return False
    folder = Path(beside(judge.cache, None if modules is None else Path(modules)))
    return folder.is_dir() and any(folder.iterdir())
