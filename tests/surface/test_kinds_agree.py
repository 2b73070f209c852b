"""What a recipe may write of a kind, and what is done with it: the two tables name the same kinds."""

from __future__ import annotations

from posttrain.config.explain import records_in, tag_of
from posttrain.config.rewards import AnyReward
from posttrain.config.suites import AnySuite
from posttrain.data.formats import FORMATS
from posttrain.evaluate.suites import SUITES
from posttrain.rewards.registry import REWARDS


def test_every_kind_of_suite_has_its_row() -> None:
    assert list(records_in(AnySuite)) == list(SUITES), "one row of SUITES for each record, in one order"


def test_what_a_suite_excludes_from_its_identity_is_a_key_of_it() -> None:
    for settings, kind in SUITES.items():
        assert set(kind.beside) <= settings.model_fields.keys(), settings.__name__


def test_every_kind_of_reward_has_its_row() -> None:
    assert [tag_of(record) for record in records_in(AnyReward)] == list(REWARDS)


def test_a_format_is_found_under_its_own_name() -> None:
    assert all(name == entry.name for name, entry in FORMATS.items())
