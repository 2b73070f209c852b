"""`posttrain generate --strategy`: several draws, searches and checks where one answer is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, nearest, unknown

if TYPE_CHECKING:
    from posttrain.cli.speaker import Speaker
    from posttrain.config.strategies import StrategySettings
    from posttrain.inference.solution import Solution
    from posttrain.types import Task


def strategy_given(
    kind: str, assignments: Sequence[str], reward: str | None, sampling: Mapping[str, Any]
) -> StrategySettings:
    """The strategy of the command line: strategy_given("best_of_n", ["n=16"], "runs/mine/reward/model", {}).

    Args:
        assignments: `key=value`, the value in YAML; dots lead into a group: `sampling.temperature=0.7`.
        sampling: options of the command that were given; an assignment wins over them.

    Raises:
        UnknownKeyError: no such strategy or key.
        ConfigError: a value that there is not, or `--reward` for a strategy that asks no scorer.
    """
    from posttrain.config.strategies import STRATEGY_KINDS, strategy_of
    from posttrain.config.yaml_text import put_value, split_assignment

    if kind not in STRATEGY_KINDS:
        raise unknown("strategy", kind, STRATEGY_KINDS, where="--strategy")
    settings: dict[str, Any] = {"kind": kind}
    if reward is not None:
        if "scorer" not in STRATEGY_KINDS[kind].model_fields:
            raise ConfigError(
                f"`{kind}` asks no scorer, so that --reward would be ignored",
                remedy="leave --reward out, or choose best_of_n, which takes the answer that it likes best",
            )
        settings["scorer"] = {"kind": "reward_model", "model": reward}
    for assignment in assignments:
        source = f"--set {assignment}"
        words, value = split_assignment(assignment, source, example="--set n=16", whose="the strategy")
        put_value(settings, words, value, option="--set", written=assignment)
    if sampling:
        drawing = _drawing(settings)
        own = drawing.get("sampling", {})
        # A `sampling` that is no group is left to the record's own refusal.
        drawing["sampling"] = {**sampling, **own} if isinstance(own, dict) else own
    return strategy_of(settings)


def _drawing(settings: dict[str, Any]) -> dict[str, Any]:
    """The keys of the strategy that draws: those inside `then`, however deep, where one wraps another."""
    while (inner := settings.get("then")) is not None:
        if isinstance(inner, str):
            inner = settings["then"] = {"kind": inner}
        if not isinstance(inner, dict):
            break
        settings = inner
    return settings


def require_models_known(strategy: StrategySettings) -> None:
    """Refuse names that no model can have, before torch and the policy are loaded for them.

    Raises:
        UnknownKeyError: a scorer whose name is nearly that of a kind.
        ModelError: no such folder, catalogue name or hub id.
    """
    from posttrain.config.strategies import CritiqueBy
    from posttrain.config.strategies.base import SCORERS_BY_NAME, RewardModelScorer
    from posttrain.models import require_known

    for part in strategy.parts:
        if isinstance(part, CritiqueBy):
            require_known(part.critic, where="critic")
        for scorer in part.scorers:
            if not isinstance(scorer, RewardModelScorer) or scorer.model is None:
                continue
            # A slip in `logprob` reads as a folder, and the models that there are would be no help.
            if not Path(scorer.model).exists() and nearest(scorer.model, SCORERS_BY_NAME):
                raise unknown("scorer", scorer.model, (*SCORERS_BY_NAME, "a reward model's folder"), where="scorer")
            require_known(scorer.model, where="scorer")


def solve_prompts(
    speaker: Speaker,
    strategy: StrategySettings,
    rows: Sequence[Task],
    *,
    seed: int,
    out: Path | None,
    show: str | None,
    device: str,
) -> None:
    """Solve prompts, and print or write what was found as it is: a line per prompt, in their order."""
    from posttrain.cli.outputs import echo_json
    from posttrain.cli.progress import progress_on
    from posttrain.cli.terminal import terminal
    from posttrain.data.write import write_jsonl
    from posttrain.inference.run import solve_all
    from posttrain.inference.scorers import Scorers
    from posttrain.inference.solving import Asked
    from posttrain.models.devices import device_of

    # Their tools are part of the prompt, their answers and columns what verifiers look at.
    tasks = [replace(row, prompt=(*speaker.opening, *row.prompt)) for row in rows]
    with progress_on(terminal(stderr=True)) as progress, Scorers(device=device_of(device).type) as scorers:
        asked = Asked(speaker.engine, speaker.encoder, scorers, seed)
        with progress.phase(strategy.label, total=len(tasks), unit="prompts") as phase:
            solutions = solve_all(
                asked, tasks, strategy, on_solution=lambda _, found: phase.advance(1, tokens=found.spent.sampled)
            )
        if out is not None:
            count = write_jsonl(out, map(_row, solutions, rows))
            progress.say(f"{count:,} answers in {out}")
    for solution, row in zip(solutions, rows, strict=True):
        if show == "tree":
            _show_tree(solution)
        elif out is None:
            echo_json(_row(solution, row))


def _row(solution: Solution, row: Task) -> dict[str, Any]:
    """{"prompt", "completion", "strategy", "stopped", "spent", "facts"}: what training reads, and what it cost."""
    from posttrain.cli.batch import written

    return {
        **written(row),
        "completion": solution.answer,
        "tokens": solution.spent.sampled,
        "strategy": solution.strategy,
        "stopped": str(solution.stopped),
        "spent": asdict(solution.spent),
        "facts": dict(solution.facts),
    }


def _show_tree(solution: Solution) -> None:
    from posttrain.cli.terminal import echo, terminal
    from posttrain.inference.show import tree_lines

    for line in tree_lines(solution, width=max(80, terminal().width)):
        echo(line)
    echo("")
    echo(solution.answer or "(no answer)")
    echo("")
