"""T64 for GRPO and PPO: a run that is killed and goes on equals one that is not: losses, rollouts and weights.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.training.loop import Loop
from tests.online import lines, loop_of, run, save_start, source_of, untimed

OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"kl_target": 0.01, "updates_per_rollout": 4, "prompts_per_update": 2},
    "dapo": {},
    "ppo": {"updates_per_rollout": 4, "prompts_per_update": 2, "completions_per_prompt": 2},
    "online_dpo": {},
}
COMMON: dict[str, Any] = {"steps": 4, "examine": {"every_steps": 1}, "checkpoint": {"every_steps": 1, "keep": 2}}


class Killed(BaseException):
    """As sudden as `kill -9`: nothing in the package catches it."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"), num_hidden_layers=2)


def everything(loop: Loop) -> dict[str, torch.Tensor]:
    parts = {"policy": loop.work.policy.model, **{name: model for name, (model, _) in loop.hooks.parts.items()}}
    return {f"{part}.{name}": p.detach() for part, model in parts.items() for name, p in model.named_parameters()}


def killed(start: Path, folder: Path, method: str, adapter: Any, where: str) -> None:
    """Die in step 3: while it samples, or, with several updates a rollout, when some of them are done."""
    loop = loop_of(start, folder, method, adapter=adapter, **COMMON, **OPTIONS[method])
    engine, policy = source_of(loop).setup.sampler.engine, type(loop.work.policy)
    generate, forward = engine.generate, policy.forward
    left = 4 if OPTIONS[method].get("updates_per_rollout", 1) > 1 else 0

    def sampling(*args: Any, **kwargs: Any) -> Any:
        if where == "sampling" and loop.step == 2:
            raise Killed
        return generate(*args, **kwargs)

    def training(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if where == "training" and loop.step == 2 and torch.is_grad_enabled():
            left -= 1
            if left < 0:
                raise Killed
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "generate", sampling)
        patch.setattr(policy, "forward", training)
        with pytest.raises(Killed):
            run(loop)


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 4}])
@pytest.mark.parametrize("where", ["sampling", "training"])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_resumed_run_is_the_uninterrupted_one(
    start: Path, tmp_path: Path, method: str, where: str, adapter: Any
) -> None:
    if adapter is not None and (method, where) not in (("grpo", "training"), ("ppo", "sampling")):
        return  # the rest differs in nothing that an adapter touches
    whole = run(loop_of(start, tmp_path / "whole", method, adapter=adapter, **COMMON, **OPTIONS[method]))
    killed(start, tmp_path / "halves", method, adapter, where)
    resumed = run(loop_of(start, tmp_path / "halves", method, adapter=adapter, **COMMON, **OPTIONS[method]))
    assert resumed.step == whole.step == 4
    assert untimed(resumed.folder.metrics()) == untimed(whole.folder.metrics())
    for name in ("rollouts.jsonl", "examinations.jsonl"):
        assert lines(tmp_path / "halves", name) == lines(tmp_path / "whole", name)
    expected, found = everything(whole), everything(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
