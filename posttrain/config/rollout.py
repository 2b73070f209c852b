"""Whether sampling and training take turns: `rollout`, told apart by `mode`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.values import Int, Settings, refuse
from posttrain.losses.online import OnlineRow


class SyncRollout(Settings):
    """Sampling and training take turns: each step samples from the weights that the last one left."""

    mode: Literal["sync"] = "sync"
    """In turns."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_waits(cls, given: Any) -> Any:
        # Read as unknown keys, they would be answered with the advice to write them where they stand.
        if isinstance(given, dict) and (odd := sorted(given.keys() & AsyncRollout.model_fields.keys() - {"mode"})):
            raise refuse(
                f"`{odd[0]}` has no effect where sampling and training take turns",
                path=(odd[0],),
                found=f"mode: sync, {odd[0]}: {given[odd[0]]}",
                remedy="write `mode: async`, or leave it out",
            )
        return given


class AsyncRollout(Settings):
    """The engine samples the next steps' completions while this one trains."""

    mode: Literal["async"] = "async"
    """Sampling goes on while the trainer trains."""
    max_staleness: Int = Field(default=2, ge=0)
    """Most steps between the oldest weights that sampled a completion and those that train on it. 0 takes turns."""
    late: Literal["drop", "wait"] = "drop"
    """A prompt whose completions take longer than that: `drop` it and count it, or `wait` for it in the last step that
    may still train on it. Dropping favours short answers; waiting holds the step back."""
    on_update: Literal["continue", "recompute"] = "recompute"
    """What happens to the keys and values of a completion that is being sampled when the weights change: `recompute`
    them under the new weights, or `continue` with the old ones (vLLM alone)."""
    in_flight: Int | None = Field(default=None, ge=1)
    """Most prompts that are sampled at a time; null: all that may wait, prompts_per_step x (max_staleness + 1)."""
    scored_at_once: Int = Field(default=1, ge=1)
    """Prompts whose completions are scored at a time, beside the training. Above 1 the rewards have to be safe to call
    from several threads."""


def weighing_older(row: OnlineRow) -> OnlineRow:
    """The row for completions of older weights: where nothing else weighs them, ratios begin at the engine's log-probs,
    since ratios to the trainer's own begin at 1, whoever sampled."""
    return row if row.needs_sampler or row.ratio == "none" else replace(row, proximal="sampler")


def require_weighed(method: str, row: OnlineRow, rollout: Settings) -> None:
    """Refuses a row that would take completions of older weights for the policy's own."""
    if not isinstance(rollout, AsyncRollout) or not rollout.max_staleness:
        return
    if row.one_update and not row.needs_sampler:
        raise refuse(
            "without a ratio, completions of older weights would train as if the policy had just sampled them",
            path=("rollout", "max_staleness"),
            found=f"max_staleness: {rollout.max_staleness}; {method} with these choices has neither a ratio nor a "
            "correction",
            expected="a ratio, a correction, or max_staleness: 0",
            remedy="write `choices: {correction: truncated}` or `choices: {ratio: token, surrogate: clip}`, or "
            "`rollout: sync`",
        )


def _by_name(value: Any) -> Any:
    """`rollout: async` for `rollout: {mode: async}`; a group without `mode` that has a key of its own is one, too."""
    if isinstance(value, str):
        return {"mode": value}
    if isinstance(value, dict) and "mode" not in value:
        return {**value, "mode": "async" if value else "sync"}
    return value


RolloutSettings = Annotated[
    SyncRollout | AsyncRollout,
    Field(discriminator="mode"),
    BeforeValidator(_by_name),
]
ROLLOUTS: tuple[type[Settings], ...] = (SyncRollout, AsyncRollout)
