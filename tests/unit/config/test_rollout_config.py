"""The key `rollout`: what it is by default, what it refuses, and what of it a stage's result depends on."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.config import stage_fingerprint, what_changed
from posttrain.config.online import GRPO, Online
from posttrain.config.rollout import AsyncRollout, SyncRollout
from posttrain.errors import ConfigError, UnknownKeyError


def hashed(**options: Any) -> str:
    return stage_fingerprint(GRPO(steps=2, **options), data=[], start_model="x", seed=0)


def test_turns_are_the_default_and_no_part_of_a_hash() -> None:
    assert GRPO().rollout == SyncRollout() and not GRPO().off_policy
    # Of a version that had no such key.
    assert hashed() == hashed(rollout="sync") == "f108a27081bafc73f804888581ec53a241f2ced4cc1ac4b7c0d76978a5ec45dc"


def test_a_word_or_a_key_of_its_own_is_enough() -> None:
    assert GRPO(rollout="async").rollout == AsyncRollout()
    assert GRPO(rollout={"max_staleness": 1}).rollout == AsyncRollout(max_staleness=1)
    assert GRPO(rollout={}).rollout == SyncRollout()


@pytest.mark.parametrize(
    ("rollout", "same"),
    [
        ({"in_flight": 4}, True),
        ({"scored_at_once": 4}, True),
        ({"max_staleness": 1}, False),
        ({"late": "wait"}, False),
    ],
    ids=str,
)
def test_how_much_is_done_at_a_time_is_no_part_of_a_result(rollout: dict[str, Any], same: bool) -> None:
    assert hashed(rollout="async") != hashed()
    assert (hashed(rollout={"mode": "async", **rollout}) == hashed(rollout="async")) is same


def test_what_changed_is_named_by_its_key_and_an_older_stage_took_turns() -> None:
    stage = GRPO(rollout={"max_staleness": 1, "in_flight": 3})
    stored = GRPO(rollout="async").model_dump(mode="json", by_alias=True)
    assert [str(one) for one in what_changed(stored, stage)] == ["`rollout.max_staleness` 2 -> 1"]
    older = {key: value for key, value in GRPO().model_dump(mode="json", by_alias=True).items() if key != "rollout"}
    assert what_changed(older, GRPO()) == []
    assert [one.key for one in what_changed(older, stage)] == ["rollout"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rollout": {"mode": "sync", "max_staleness": 1}}, "has no effect where sampling and training take turns"),
        ({"rollout": "asnc"}, "did you mean `async`"),
        ({"rollout": {"max_staleness": -1}}, "greater than or equal to 0"),
        ({"rollout": "async", "engine": "vllm_colocated"}, "sleeps while the trainer trains"),
        ({"rollout": {"on_update": "continue"}}, "computes keys and values anew"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_when_the_recipe_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GRPO(**options)


def test_a_misspelt_key_is_named() -> None:
    with pytest.raises(UnknownKeyError, match="max_staleness"):
        GRPO(rollout={"mode": "async", "max_stalness": 1})


@pytest.mark.parametrize("method", ["rloo", "maxrl"])
def test_a_method_without_a_ratio_needs_a_correction(method: str) -> None:
    with pytest.raises(ConfigError, match="completions of older weights"):
        Online(method, rollout="async")
    assert not Online(method, rollout={"mode": "async", "max_staleness": 0}).off_policy
    Online(method, rollout="async", choices={"correction": "truncated"})


def test_where_ratios_begin() -> None:
    assert GRPO().row.proximal == "trainer"
    assert GRPO(rollout="async").row.proximal == "sampler"
    assert GRPO(rollout={"max_staleness": 0}).row.proximal == "trainer"
    assert GRPO(rollout="async", choices={"correction": "truncated"}).row.proximal == "trainer"
    assert GRPO(rollout="async", choices={"token_mask": "ratio"}).row.proximal == "trainer"
