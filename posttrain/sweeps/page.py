"""sweep.html: the table of a sweep as one self-contained page."""

from __future__ import annotations

from pathlib import Path

from posttrain.report.sweep_page import FigureOfSettings, SettingRow, SweepPage, write_sweep_page
from posttrain.runs.records.evaluation import Figure
from posttrain.sweeps.record import SweepRecord
from posttrain.sweeps.results import Results
from posttrain.sweeps.table import best_lines, described, error_lines, heads_and_cells, is_best


def write_page(folder: Path, found: Results, record: SweepRecord) -> Path:
    heads, cells = heads_and_cells(found)
    rows = [
        SettingRow(
            line, [(run.folder, run.status) for run in record.runs if run.setting == row.setting], is_best(found, row)
        )
        for row, line in zip(found.rows, cells, strict=True)
    ]
    figures = []
    for column in found.columns:
        values = [
            (described(row.settings), Figure(one.mean, one.low, one.high, len(one.by_seed)))
            for row in found.rows
            if (one := row.figures.get(column.key)) is not None
        ]
        figures.append(FigureOfSettings(column.title, column.unit, values))
    return write_sweep_page(folder, SweepPage(found.name, heads, rows, figures, best_lines(found), error_lines(found)))
