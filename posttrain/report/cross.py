"""Several policies by several reward models: a matrix, and the rewards of each policy as boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.report.charts import Chart
from posttrain.report.distributions import box_chart
from posttrain.report.numbers import count, interval, number
from posttrain.runs.read import RunContents
from posttrain.runs.records.reward import CrossAgreement, CrossCell

STRONGEST = 0.5
"""Standard deviations from the mean at which a cell has its full tint."""


@dataclass(frozen=True, slots=True)
class ShownCell:
    """One policy by one reward model; `tint` is -100 (least liked) to 100 per cent."""

    mean: str
    mean_interval: str
    win_rate: str
    win_interval: str
    tint: int


@dataclass(frozen=True, slots=True)
class CrossRow:
    policy: str
    cells: list[ShownCell | None]


@dataclass(frozen=True, slots=True)
class CrossView:
    """The section as the template lays it out."""

    prompts: str
    first: str
    reward_models: list[str]
    rows: list[CrossRow]
    charts: list[Chart]
    agreement: list[str]


def cross_view(run: RunContents) -> CrossView | None:
    """The section, or None where no policies were scored."""
    record = run.cross_scores
    if record is None or not record.policies or not record.reward_models or not record.cells:
        return None
    cells = {judge: record.cells.get(judge, {}) for judge in record.reward_models}
    return CrossView(
        prompts=count(record.prompts),
        first=record.policies[0],
        reward_models=list(record.reward_models),
        rows=[
            CrossRow(policy, [_cell(cells[judge].get(policy)) for judge in record.reward_models])
            for policy in record.policies
        ],
        charts=[chart for judge, own in cells.items() if (chart := _boxes(judge, record.policies, own)).paths],
        agreement=[said for pair in record.agreement if (said := _agreement(pair))],
    )


def _cell(cell: CrossCell | None) -> ShownCell | None:
    if cell is None or cell.mean is None:
        return None
    mean, won = cell.mean, cell.win_rate
    return ShownCell(
        mean=number(mean.value),
        mean_interval=interval(mean.low, mean.high),
        win_rate=number(won.value, "share") if won else "",
        win_interval=interval(won.low, won.high, "share") if won else "",
        # By the standardised mean: raw rewards of two reward models have no common scale, and one would tint its whole
        # column.
        tint=round(100 * max(-1.0, min(1.0, (cell.standardised or 0.0) / STRONGEST))),
    )


def _boxes(judge: str, policies: Sequence[str], cells: Mapping[str, CrossCell]) -> Chart:
    groups = []
    for index, policy in enumerate(policies):
        values = list(cells[policy].rewards) if policy in cells else []
        # Grey, as the start is everywhere: the first policy is the one that the win rates are against.
        groups.append((policy, "ink-3" if index == 0 else "accent", values))
    return box_chart(f"Judged by {judge}", groups, "reward")


def _agreement(pair: CrossAgreement) -> str:
    names, same, rho, tau = pair.between, pair.same_order, pair.spearman, pair.kendall
    if len(names) != 2 or same is None:
        return ""
    return (
        f"{names[0]} and {names[1]} put {number(same.value, 'share')} ({interval(same.low, same.high, 'share')}) of "
        f"the answers to one prompt in the same order; Spearman's rank correlation over all answers is "
        f"{number(rho.value if rho else None)}, Kendall's {number(tau.value if tau else None)}."
    )
