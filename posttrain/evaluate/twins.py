"""What is a selection worth? The model trained on it, against the one trained on as many rows at random.

    comparisons = compare_twins(run, twin_pairs(recipe.stages))
    comparisons[0].figures[0].said    # "sums (accuracy): on_picked beats its random twin by 12 points [6, 18], ..."

Both answered the same prompts, so the difference is paired. It counts where neither test lets chance explain it: the
bootstrap's interval over prompts leaves out 0, and so do random signs (`pass_at_k_change` says why there are two). Such
an interval is over prompts alone: another seed trains other models; `seeds_of_twins` puts those together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from posttrain.config.twins import TwinPair
from posttrain.diagnostics.paired import paired_scores
from posttrain.diagnostics.suite_metrics import meaning
from posttrain.errors import DataError
from posttrain.evaluate.pass_at_k import read_counts
from posttrain.evaluate.pass_at_k_change import change
from posttrain.intervals import CONFIDENCE, Difference, paired_difference, prompts_to_tell, sign_flip
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.meanings import meanings_in
from posttrain.runs.records.evaluation import Direction, Figure, Meaning, SuiteScores
from posttrain.runs.records.selection import SelectionManifest
from posttrain.runs.records.twins import TwinComparison, TwinComparisons, TwinFigure

GAIN, LOSS, CHANCE, SAME, UNKNOWN = "gain", "loss", "chance", "same", "unknown"
MOST_PROMPTS = 100_000
"""Nobody asks more: a difference that needs so many prompts to be seen is as good as none."""


def write_twins(run: RunFolder, pairs: Sequence[TwinPair]) -> None:
    """twins.json of a run; one of a recipe that had other stages goes."""
    if pairs:
        run.write(TwinComparisons(tuple(compare_twins(run, pairs))))
    else:
        (run.path / TwinComparisons.FILE).unlink(missing_ok=True)


def compare_twins(run: RunFolder, pairs: Sequence[TwinPair]) -> list[TwinComparison]:
    """A comparison for each pair whose two stages are done."""
    ready = [pair for pair in pairs if all(_is_done(run.stage(name)) for name in (pair.selected, pair.twin))]
    return [_compare(run, pair) for pair in ready]


def _is_done(folder: StageFolder) -> bool:
    return folder.exists and folder.stage().status == "done"


def _compare(run: RunFolder, pair: TwinPair) -> TwinComparison:
    selected, twin = run.stage(pair.selected), run.stage(pair.twin)
    kept, drawn, shared = _rows(run.stage(pair.selection), pair.rows)
    figures = () if pair.unlike else tuple(_figures(selected, twin))
    return TwinComparison(
        pair.selection,
        pair.rows,
        pair.selected,
        pair.twin,
        selected_rows=kept,
        twin_rows=drawn,
        shared=shared,
        differs=pair.differs,
        said=_tally(pair, figures, drawn, shared),
        figures=figures,
    )


def _rows(selection: StageFolder, rows: str) -> tuple[int | None, int | None, int | None]:
    """Rows of the selection, of its twin, and of both at once, as far as the manifest says."""
    manifest = selection.document(SelectionManifest)
    twins = manifest.twins if manifest is not None else ()
    twin = next((twin for twin in twins if twin.file == f"{rows}.jsonl"), None)
    return (
        manifest.kept if manifest is not None else None,
        twin.rows if twin is not None else None,
        twin.shared if twin is not None else None,
    )


# ---------------------------------------------------------------- the figures


@dataclass(frozen=True, slots=True)
class _Moved:
    """A difference and how often chance alone makes as large a one."""

    difference: Difference
    p: float


def _figures(selected: StageFolder, twin: StageFolder) -> list[TwinFigure]:
    """What the suites are asked for and that should rise or fall; a drift that should stay is no skill to compare."""
    own, others = selected.document(SuiteScores), twin.document(SuiteScores)
    if own is None or others is None:
        return []
    found = []
    for suite, metrics in own.suites.items():
        for metric, figure in metrics.items():
            other = others.suites.get(suite, {}).get(metric)
            how = meaning_of(selected, suite, metric)
            if other is None or not how.primary or how.wanted is Direction.STILL:
                continue
            moved = _paired(selected, twin, suite, metric, figure, other)
            found.append(_figure(suite, metric, how, (selected.name, twin.name), (figure, other), moved))
    return found


def meaning_of(folder: StageFolder, suite: str, metric: str) -> Meaning:
    """As the suite's own kind says, else as the table of all metrics knows it."""
    return meanings_in(folder).get(suite, {}).get(metric) or meaning(metric)


def _paired(
    selected: StageFolder, twin: StageFolder, suite: str, metric: str, figure: Figure, other: Figure
) -> _Moved | None:
    """Over the same prompts: by the answers' scores, or of pass@k by the right answers to each prompt."""
    scores = paired_scores(twin.answers(suite), selected.answers(suite), other, figure)
    if scores is not None:
        before_P, after_P = np.asarray(scores[0]), np.asarray(scores[1])
        return _Moved(paired_difference(before_P, after_P), sign_flip(after_P - before_P))
    base, trained = read_counts(twin.path, suite), read_counts(selected.path, suite)
    if base is None or trained is None:
        return None
    with suppress(DataError):  # one was asked before the suite was changed, and will be asked anew
        for point in change(base, trained).points:
            if metric == f"pass_at_{point.k}":
                return _Moved(point.difference, point.p)
    return None


def _figure(
    suite: str,
    metric: str,
    how: Meaning,
    names: tuple[str, str],
    figures: tuple[Figure, Figure],
    moved: _Moved | None,
) -> TwinFigure:
    """names, figures: of the selection, then of the twin."""
    value = figures[0].value - figures[1].value
    difference = Figure(value) if moved is None else Figure.of(moved.difference)
    verdict = UNKNOWN if moved is None else verdict_of(moved.difference, moved.p, how.wanted)
    said = f"{suite} ({how.title}): {words(names, difference, verdict, how)}"
    p = None if moved is None else moved.p
    return TwinFigure(suite, metric, how.title, how.unit, *figures, difference, p, verdict, said)


def verdict_of(difference: Difference, p: float, wanted: Direction = Direction.UP) -> str:
    """gain, loss, chance or same: verdict_of(Difference(0.12, 0.06, 0.18, 200), p=0.001) == "gain"."""
    if difference.value == difference.low == difference.high == 0:
        return SAME
    if not difference.clear or p > 1 - CONFIDENCE:
        return CHANCE
    return GAIN if (difference.value < 0) == (wanted is Direction.DOWN) else LOSS


# ---------------------------------------------------------------- in words


def words(names: tuple[str, str], difference: Figure, verdict: str, how: Meaning) -> str:
    """words(("on_picked", "on_random"), Figure(0.03, -0.01, 0.07, 200), "chance", meaning("accuracy")) is
    "on_picked beats its random twin on_random by 3 points [−1, 7], 200 prompts: the gain may be chance; ..." """
    selected, twin = names
    prompts = f", {difference.n} prompts" if difference.n else ""
    if verdict == SAME:
        return f"{selected} and its random twin {twin} score the same on every prompt{prompts}"
    ahead = (difference.value < 0) == (how.wanted is Direction.DOWN) or difference.value == 0
    verb = "beats" if ahead else "loses to"
    text = f"{selected} {verb} its random twin {twin} by {_size(difference, how.unit)}{prompts}"
    if verdict == UNKNOWN:
        return f"{text}; scores of single prompts were not kept, so chance cannot be ruled out"
    if verdict != CHANCE:
        return text
    noun = "gain" if ahead else "loss"
    return f"{text}: the {noun} may be chance{_needed(difference)}"


def _size(difference: Figure, unit: str) -> str:
    """The difference without its sign, for the verb has it: _size(Figure(-0.05, -0.09, 0.01), "share") is "5 points
    [−1, 9]"."""
    sign = -1 if difference.value < 0 else 1
    value = _plain(sign * difference.value, unit)
    name = " points" if unit == "share" else ""
    if difference.low is None or difference.high is None:
        return f"{value}{name}"
    low, high = sorted((sign * difference.low, sign * difference.high))
    return f"{value}{name} [{_plain(low, unit)}, {_plain(high, unit)}]"


def _plain(value: float, unit: str) -> str:
    text = f"{100 * value:.1f}".removesuffix(".0") if unit == "share" else f"{value:.3g}"
    return text.removeprefix("-") if not any(digit in text for digit in "123456789") else text.replace("-", "\u2212")


def _needed(difference: Figure) -> str:
    """How many prompts would show it; nothing where no number in reach would."""
    if difference.low is None or difference.high is None or not difference.n:
        return ""
    half_width = (difference.high - difference.low) / 2
    needed = prompts_to_tell(difference.value, half_width, difference.n)
    return f"; were it as large, about {needed:,} prompts would show it" if needed and needed < MOST_PROMPTS else ""


def _tally(pair: TwinPair, figures: Sequence[TwinFigure], drawn: int | None, shared: int | None) -> str:
    """Of all measures in one sentence, and what the reader has to know of the comparison itself."""
    about = f"{pair.selected} against {pair.twin}"
    if pair.unlike:
        return f"{about}: not compared, for {pair.unlike}"
    if not figures:
        return f"{about}: not compared, for no suite asked both; `evaluate: {{every_stage: true}}` asks every stage"
    counts = {verdict: sum(figure.verdict == verdict for figure in figures) for verdict in (GAIN, LOSS)}
    rest = len(figures) - sum(counts.values())
    text = (
        f"{about}: of {len(figures)} measures {counts[GAIN]} gained by the selection, {counts[LOSS]} lost, "
        f"{rest} not told from chance"
    )
    if pair.differs:
        others = ", ".join(pair.differs)
        text += f". The two differ beside their rows, so this is not the selection's doing alone: {others}"
    if drawn and shared and shared > drawn / 2:
        text += f". {shared:,} of the twin's {drawn:,} rows are in the selection, too, so little can differ"
    return f"{text}."
