"""Several policies by several reward models: a matrix, and the rewards of each policy as boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.report.charts import Chart
from posttrain.report.distributions import box_chart
from posttrain.report.numbers import count, interval, number
from posttrain.report.reward import score_of
from posttrain.runs.read import Run
from posttrain.runs.tolerant import as_list, as_mapping, as_number, as_text

STRONGEST = 0.5
"""Standard deviations from the mean at which a cell has its full tint."""


@dataclass(frozen=True, slots=True)
class CrossCell:
    """One policy by one reward model; `tint` is -100 (least liked) to 100 per cent."""

    mean: str
    mean_interval: str
    win_rate: str
    win_interval: str
    tint: int


@dataclass(frozen=True, slots=True)
class CrossRow:
    policy: str
    cells: list[CrossCell | None]


@dataclass(frozen=True, slots=True)
class CrossView:
    """The section as the template lays it out."""

    prompts: str
    first: str
    reward_models: list[str]
    rows: list[CrossRow]
    charts: list[Chart]
    agreement: list[str]


def cross_view(run: Run) -> CrossView | None:
    """The section, or None where no policies were scored."""
    record = run.cross_scores
    policies = [as_text(name) for name in as_list(record.get("policies"))]
    judges = [as_text(name) for name in as_list(record.get("reward_models"))]
    cells = as_mapping(record.get("cells"))
    if not policies or not judges or not cells:
        return None
    rows = [
        CrossRow(policy, [_cell(as_mapping(as_mapping(cells.get(judge)).get(policy))) for judge in judges])
        for policy in policies
    ]
    return CrossView(
        prompts=count(as_number(record.get("prompts"))),
        first=policies[0],
        reward_models=judges,
        rows=rows,
        charts=[chart for judge in judges if (chart := _boxes(judge, policies, as_mapping(cells.get(judge)))).paths],
        agreement=[said for pair in map(as_mapping, as_list(record.get("agreement"))) if (said := _agreement(pair))],
    )


def _cell(cell: dict[str, Any]) -> CrossCell | None:
    mean, won = score_of(cell.get("mean")), score_of(cell.get("win_rate"))
    if mean is None:
        return None
    liked = as_number(cell.get("standardised")) or 0.0
    return CrossCell(
        mean=number(mean.value),
        mean_interval=interval(mean.low, mean.high),
        win_rate=number(won.value, "share") if won else "",
        win_interval=interval(won.low, won.high, "share") if won else "",
        tint=round(100 * max(-1.0, min(1.0, liked / STRONGEST))),
    )


def _boxes(judge: str, policies: list[str], cells: dict[str, Any]) -> Chart:
    groups = []
    for index, policy in enumerate(policies):
        listed = as_list(as_mapping(cells.get(policy)).get("rewards"))
        values = [value for reward in listed if (value := as_number(reward)) is not None]
        groups.append((policy, "ink-3" if index == 0 else "accent", values))
    return box_chart(f"Judged by {judge}", groups, "reward")


def _agreement(pair: dict[str, Any]) -> str:
    names = [as_text(name) for name in as_list(pair.get("between"))]
    same, rho, tau = (score_of(pair.get(key)) for key in ("same_order", "spearman", "kendall"))
    if len(names) != 2 or same is None:
        return ""
    return (
        f"{names[0]} and {names[1]} put {number(same.value, 'share')} ({interval(same.low, same.high, 'share')}) of "
        f"the answers to one prompt in the same order; Spearman's rank correlation over all answers is "
        f"{number(rho.value if rho else None)}, Kendall's {number(tau.value if tau else None)}."
    )
