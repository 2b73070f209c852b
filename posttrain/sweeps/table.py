"""The table of a sweep as text, and the words that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.runs.differences import shown
from posttrain.sweeps.results import Measured, Results, Row

NOTHING = "-"


def heads_and_cells(found: Results) -> tuple[list[str], list[list[str]]]:
    """What is varied, the seeds, a column a figure, the difference that is paired by seed, and what is to be said of
    the row; columns of which no row has anything are left out."""
    varied = list(dict.fromkeys(key for row in found.rows for key in row.settings))
    with_difference = any(row.against is not None for row in found.rows)
    with_words = any(row.said for row in found.rows)
    heads = [*varied, "seeds", *(column.title for column in found.columns)]
    heads += [difference_title(found)] * with_difference + [""] * with_words
    rows = []
    for row in found.rows:
        cells = [setting(row.settings[key]) if key in row.settings else NOTHING for key in varied]
        cells.append(str(row.done) if row.is_complete else f"{row.done} of {row.seeds}")
        cells += [measured(row.figures.get(column.key), column.unit) for column in found.columns]
        cells += [measured(row.against, _unit(found), sign=True)] * with_difference + [row.said] * with_words
        rows.append(cells)
    return heads, rows


def difference_title(found: Results) -> str:
    what = found.by or (found.columns[0].key if found.columns else "")
    return f"{what} minus that of the {'best' if found.best is not None else 'first'}, by seed"


def is_best(found: Results, row: Row) -> bool:
    return found.best is not None and found.best.setting == row.setting


def measured(figure: Measured | None, unit: str, *, sign: bool = False) -> str:
    """62.0 % [55.1, 68.9] of several seeds, 62.0 % of one; of a difference +1.5 [-2.0, 5.0] points."""
    if figure is None:
        return NOTHING
    plus = "+" if sign else ""
    scale, form = (100, f"{plus}.1f") if unit == "share" else (1, f"{plus}.4g")
    name = "" if unit != "share" else " points" if sign else " %"
    text = f"{scale * figure.mean:{form}}{name}"
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return text
    return f"{text} [{scale * figure.low:{form}}, {scale * figure.high:{form}}]"


def setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def best_lines(found: Results) -> list[str]:
    """What is chosen, and how much of its figure choosing made."""
    best = found.best
    if best is None:
        return [] if found.by is None else ["no setting is done with all of its seeds, so none is chosen"]
    unit = _unit(found)
    chosen = described(best.settings)
    lines = [f"best by {found.by}: {chosen}, {measured(Measured(best.mean, best.low, best.high, {}), unit)}"]
    if best.expected is not None and best.optimism is not None:
        expected = Measured(best.expected.value, best.expected.low, best.expected.high, {})
        share = measured(Measured(abs(best.optimism), None, None, {}), unit).replace(" %", " points")
        verb = "better" if best.optimism >= 0 else "worse"
        lines.append(
            f"it is the best of what was tried, so its figure looks {share} {verb} than is to be expected: "
            f"{measured(expected, unit)}"
        )
    lines.append(best.said)
    return lines


def described(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={setting(value)}" for key, value in settings.items()) or "the recipe's own settings"


def error_lines(found: Results) -> list[str]:
    return [f"{name}: {error}" for row in found.rows for name, error in row.errors.items()]


def text_of(found: Results) -> str:
    """The whole as lines of a monospaced text."""
    heads, cells = heads_and_cells(found)
    marked = [["* " * is_best(found, row) + line[0], *line[1:]] for row, line in zip(found.rows, cells, strict=True)]
    table = [heads, *marked]
    widths = [max(len(line[place]) for line in table) for place in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([*lines, *best_lines(found), *error_lines(found)])


def _unit(found: Results) -> str:
    key = found.by or (found.columns[0].key if found.columns else "")
    return next((column.unit for column in found.columns if column.key == key), "")
