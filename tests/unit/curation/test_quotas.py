"""Quotas: sizes by hand, shortfalls that are counted, and values that no row has."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.config.diversity import Quotas
from posttrain.curation.diversity.quotas import quota_sizes, quotas
from posttrain.errors import ConfigError, DataError, UnknownKeyError

VALUES = ["code", "maths", "code", "chat", "maths", "code"]


def of(values=VALUES, scores=None, budget=None, order=None, **keys):
    settings = Quotas(kind="quotas", by="column", column="topic", **keys)
    order_R = np.arange(len(values)) if order is None else np.array(order)
    return quotas(values, settings, scores=scores, budget=budget, order_R=order_R)


def test_counts_take_the_first_drawn_or_the_best():
    drawn = of(counts={"code": 2, "maths": 1}, order=[5, 4, 3, 2, 1, 0])
    assert drawn.kept_K.tolist() == [5, 4, 2]
    assert drawn.reasons == {3: "no_quota", 1: "over_quota", 0: "over_quota"} and not drawn.notes
    best = of(counts={"code": 2, "maths": 1}, scores=np.array([3.0, 1.0, 9.0, 0.0, np.nan, 5.0]))
    assert best.kept_K.tolist() == [2, 5, 1]


def test_shares_come_to_the_budget_by_the_largest_remainder():
    wanted = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    there = dict.fromkeys(wanted, 100)
    assert quota_sizes(wanted, there, 10, "fewer", as_shares=True)[0] == {"a": 4, "b": 3, "c": 3}
    tenths = {"a": 0.3, "b": 0.7}
    assert quota_sizes(tenths, {"a": 9, "b": 9}, 10, "fewer", as_shares=True)[0] == {"a": 3, "b": 7}


def test_counts_above_the_budget_shrink_in_proportion():
    assert quota_sizes({"a": 30, "b": 10}, {"a": 99, "b": 99}, 8, "fewer", as_shares=False)[0] == {"a": 6, "b": 2}


def test_a_shortfall_is_counted_filled_or_refused():
    there = {"a": 2, "b": 5, "c": 50}
    wanted = {"a": 10, "b": 4, "c": 4}
    assert quota_sizes(wanted, there, None, "fewer", as_shares=False) == ({"a": 2, "b": 4, "c": 4}, {"a": 8})
    # 8 are missing: 4 each for b and c, of which b has one more; the other 3 go to c.
    filled, short = quota_sizes(wanted, there, None, "fill", as_shares=False)
    assert filled == {"a": 2, "b": 5, "c": 11} and short == {"a": 8}
    assert quota_sizes({"a": 9}, {"a": 2}, None, "fill", as_shares=False) == ({"a": 2}, {"a": 7})

    fewer = of(counts={"code": 5, "maths": 1})
    assert len(fewer.kept_K) == 4
    assert fewer.notes == ("`code` is 2 short: it has 3 rows", "2 rows fewer are kept than the quotas come to")
    with pytest.raises(DataError, match="`code` has too few rows") as error:
        of(counts={"code": 5}, shortfall="refuse")
    assert error.value.found == "3 rows" and error.value.expected == "5 rows"


def test_other_is_all_values_that_are_not_named():
    choice = of(shares={"code": 0.5, "other": 0.5}, budget=4)
    assert choice.kept_K.tolist() == [0, 1, 2, 3]


def test_a_quota_of_what_is_nowhere_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownKeyError, match="no row has the topic `coed`") as error:
        of(counts={"coed": 2})
    assert error.value.remedy == "did you mean `code`?"


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"by": "source", "counts": {"a": -1}}, "below 0"),
        ({"by": "source", "counts": {"a": 1}, "shares": {"a": 0.5}}, "numbers of rows, or shares"),
        ({"by": "source"}, "numbers of rows, or shares"),
        ({"by": "source", "shares": {"a": 0.7, "b": 0.6}}, "more than the budget"),
        ({"counts": {"a": 1}}, "belong together"),
        ({"by": "language", "column": "x", "counts": {"a": 1}}, "belong together"),
    ],
)
def test_quotas_that_cannot_be_met_are_refused(keys, match):
    with pytest.raises(ConfigError, match=match):
        Quotas(kind="quotas", **keys)
