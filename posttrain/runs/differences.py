"""What differs between two results of a stage: settings that have an effect, seeds, and contents that they rest on.

    [str(one) for one in setting_differences(before, after)]    # ["`beta` 0.1 -> 0.5", "`seed` 0 -> 3"]
    content_differences(record, other)                          # ["`data` has other content"]

Settings are a parsed config.yaml. Standard library only, as a report needs it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WITHOUT_EFFECT = ("name", "starts_from", "log", "modules", "checkpoint", "preflight", "audit", "alarms")
"""Keys of a stage that change what is written or shown, not the weights; what a stage starts from counts by its
weights, not by its name."""
COMPUTE_WITHOUT_EFFECT = (
    "tokens_per_microbatch",
    "activation_checkpointing",
    "offload_activations",
    "logprobs",
    "device",
    "mesh",
    "offload",
)
"""How the same numbers are computed: a run that was moved to a machine with less memory need not begin anew."""
EXPORT_WITHOUT_EFFECT = ("save",)
"""Whether there is a folder at all: a stage that is done and has none is run again where one is asked for."""
TEACHERS = ("teacher", "judge", "critic", "writer")
"""Keys that say who is asked to write or to compare, of a stage or of its `make`."""
TEACHER_WITHOUT_EFFECT = (
    "key_env",
    "per_minute",
    "tokens_per_minute",
    "concurrency",
    "retries",
    "timeout",
    "price",
    "device",
    "rows_at_once",
)
"""Of a `teacher` that writes rows: how fast it is asked and what is said of its cost, and no answer."""
KEPT = "keep"
"""Of `examine`: which of a run's weights it ends with, and no step of it. A run may be resumed with the other, and a
finished stage remembers which it was (`examine_keep` of stage.json)."""
ENGINE_WITH_EFFECT = "kind"
"""Of `engine`: where a server is, or how much fits into memory, changes no result."""
ROLLOUT = "rollout"
ROLLOUT_WITHOUT_EFFECT = ("in_flight", "scored_at_once")
"""Of `rollout`: how much is sampled and scored at a time, and not what."""

SEEDS = ("seed", "split_seed")
"""Keys that config.yaml has beside the stage's own; those of older versions lack them, and then nothing is known."""
START_MODEL = "start_model"
"""Key of the start model in a stage's `contents`; the others are keys of its settings, such as `data`."""
SAID = {
    START_MODEL: "the start model has other weights",
    "template": "the start model is asked in another way",
    "objective": "the function of `objective` has another source",
    "rewards": "the functions that were passed as rewards are others",
}
LONGEST_VALUE = 60
"""Characters of a value in a sentence."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference("optimizer.clip_norm", 1.0, None)"""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"`{self.key}` {shown(self.before)} -> {shown(self.after)}"


def setting_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """The settings whose effect differs, by key.

    Args:
        before, after: stored config.yaml files, parsed.
    """
    unknown_seeds = [key for key in SEEDS if (key in before) != (key in after)]
    found = _differences(_without(before, unknown_seeds), _without(after, unknown_seeds), "")
    return sorted(found, key=lambda difference: difference.key)


def content_differences(before: Mapping[str, str] | None, after: Mapping[str, str] | None) -> list[str]:
    """What has other content, a sentence each; of what only one of the two knows nothing is said.

    Args:
        before, after: `contents` of two stage.json files.
    """
    before, after = before or {}, after or {}
    changed = [key for key in before if key in after and before[key] != after[key]]
    return [SAID.get(key, f"`{key}` has other content") for key in changed]


def all_differences(
    settings: Sequence[Difference], before: Mapping[str, str] | None, after: Mapping[str, str] | None
) -> list[str]:
    """Settings and contents in words; of a file whose content is known the path says nothing, since it may be moved.

    Args:
        before, after: `contents` of two stage.json files.
    """
    moved = {f"{key}.{place}" for key in set(before or {}) & set(after or {}) for place in ("path", "stage")}
    return [*(str(one) for one in settings if one.key not in moved), *content_differences(before, after)]


def rollout_with_effect(rollout: Any) -> dict[str, Any] | None:
    """The keys of a stored `rollout` that change a result; None where sampling and training take turns, as they do in
    stages that were written before there was a choice."""
    if not isinstance(rollout, dict) or rollout.get("mode") == "sync":
        return None
    return {key: value for key, value in rollout.items() if key not in ROLLOUT_WITHOUT_EFFECT}


def shown(value: Any) -> str:
    """A value as a sentence has it: 0.1, none, [1, 2]."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _without(settings: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in keys}
    return {**kept, ROLLOUT: rollout_with_effect(kept[ROLLOUT])} if ROLLOUT in kept else kept


def _differences(before: Any, after: Any, path: str) -> list[Difference]:
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [Difference(path, before, after)]
    # Nested, so that a message names `optimizer.clip_norm` and not the whole group.
    found = []
    for key in before.keys() | after.keys():
        ignored = key in WITHOUT_EFFECT if not path else path == "compute" and key in COMPUTE_WITHOUT_EFFECT
        ignored = ignored or (path == "export" and key in EXPORT_WITHOUT_EFFECT)
        ignored = ignored or (path == "engine" and key != ENGINE_WITH_EFFECT)
        ignored = ignored or (path == "examine" and key == KEPT)
        ignored = ignored or (path.rpartition(".")[2] in TEACHERS and key in TEACHER_WITHOUT_EFFECT)
        if not ignored:
            found += _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    return found
