"""Which skills of its parents a merge kept: suites of the base, the parents and the merge, over the same prompts.

    kept_skill("both", "sums", "accuracy", ("start", scores), {"maths": scores, "code": scores}, scores).said
    # "both kept a part of what maths had gained on sums: 64 % [55, 73] of it (1 % of start, 62 % of maths, ...)"

What a parent learnt is what it gained over the base, so the share that is kept is (merge - base) / (parent - base),
with the percentile bootstrap over prompts: numerator and denominator are drawn together, since an easy prompt is easy
for all three. It is said only where the parent's gain is clear; a share of a gain that may be none means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from posttrain.diagnostics.suite_metrics import meaning
from posttrain.evaluate.words import in_points, percent
from posttrain.intervals import Difference, Score, average, bootstrap, paired_difference
from posttrain.runs.folder import RunFolder, read_answers
from posttrain.runs.records.evaluation import Direction, Figure, SuiteScores
from posttrain.runs.records.merging import KeptSkill, MergedSkills

ALL = 0.9
"""Of a gain: from this share on, by the whole interval, a skill counts as kept."""
SOME = 0.1
"""Below this share, by the whole interval, it counts as lost."""


def kept_skill(
    merge: str,
    suite: str,
    metric: str,
    base: tuple[str, Sequence[float]],
    parents: Mapping[str, Sequence[float]],
    merged: Sequence[float],
) -> KeptSkill:
    """One suite; scores are one per prompt, in the same order for all, and the larger the better.

    Args:
        base: what the parents come from, by name, with its scores.

    Raises nothing; at least one prompt and one parent.
    """
    name, scores = base
    base_P, merged_P = np.asarray(scores, dtype=float), np.asarray(merged, dtype=float)
    gains = {parent: paired_difference(base_P, own) for parent, own in parents.items()}
    best = max(gains, key=lambda parent: gains[parent].value)
    learnt = gains[best].clear and gains[best].value > 0
    moved = paired_difference(parents[best] if learnt else base_P, merged_P)
    share = _share(base_P, np.asarray(parents[best], dtype=float), merged_P) if learnt else None
    return KeptSkill(
        merge=merge,
        suite=suite,
        metric=metric,
        base=name,
        before=Figure.of(average(base_P)),
        parents={parent: Figure.of(average(own)) for parent, own in parents.items()},
        merged=Figure.of(average(merged_P)),
        parent=best if learnt else None,
        kept=None if share is None else Figure.of(share),
        difference=Figure.of(moved),
        said=_sentence(merge, suite, share, moved, {name: base_P, best: parents[best], merge: merged_P}),
    )


def _share(base_P: np.ndarray, parent_P: np.ndarray, merged_P: np.ndarray) -> Score:
    """(merge - base) / (parent - base)."""

    def of(index: np.ndarray) -> np.ndarray:
        before = base_P[index].mean(axis=-1)
        gained, left = parent_P[index].mean(axis=-1) - before, merged_P[index].mean(axis=-1) - before
        # A resample without any gain has no share; it is rare where the gain is clear, and 0 widens the interval.
        return np.divide(left, gained, out=np.zeros_like(left), where=gained > 0)

    return bootstrap(len(base_P), of)


def _sentence(
    merge: str, suite: str, share: Score | None, moved: Difference, scores: Mapping[str, Sequence[float] | np.ndarray]
) -> str:
    """`scores`: of the base, of the best parent and of the merge, in this order."""
    base, best, _ = scores
    n = moved.n
    if share is None:
        said = "did not change clearly" if not moved.clear else "rose" if moved.value > 0 else "fell"
        change = f"{in_points(moved.value)} points [{in_points(moved.low)}, {in_points(moved.high)}]"
        return f"{merge}: no parent gained clearly on {suite}; the merge {said} from {base} ({change}, {n} prompts)"
    verdict = "kept" if share.low >= ALL else "lost" if share.high <= SOME else "kept a part of"
    figures = ", ".join(f"{name} {percent(float(np.mean(own)))} %" for name, own in scores.items())
    bounds = f"{percent(share.value)} % [{percent(share.low)}, {percent(share.high)}]"
    return f"{merge} {verdict} what {best} had gained on {suite}: {bounds} of it ({figures}; {n} prompts)"


# ---------------------------------------------------------------- of a run


def skills_of_run(folders: Mapping[str, Path], merges: Mapping[str, tuple[str, Sequence[str]]]) -> list[KeptSkill]:
    """Every merge beside the models of the run that it was made of, suite by suite: records for merges.json.

    A suite that someone was not asked, or was asked with other prompts, is passed over, and so is one without a score
    for each answer.

    Args:
        folders: {policy: its stage folder}, the start under "start".
        merges: {merge: (what its models come from, the stages that it merges)}.
    """
    found = []
    for merge, (base, parents) in merges.items():
        known = [name for name in dict.fromkeys(parents) if name in folders and name != base]
        if merge not in folders or not known:
            continue
        for suite, metric in _suites_of(folders[merge]):
            scores = {name: _scores(folders[name], suite) for name in (base, *known, merge)}
            by_name = {name: own for name, own in scores.items() if own}
            if len(by_name) < len(scores) or any(own.keys() != by_name[base].keys() for own in by_name.values()):
                continue
            down = meaning(metric).wanted is Direction.DOWN
            better = {
                name: [1.0 - own[key] if down else own[key] for key in by_name[base]] for name, own in by_name.items()
            }
            parts = {name: better[name] for name in known}
            found.append(kept_skill(merge, suite, metric, (base, better[base]), parts, better[merge]))
    return found


def _suites_of(folder: Path) -> list[tuple[str, str]]:
    """Suites whose figure is the mean of their answers' scores, with that figure's name."""
    path = folder / SuiteScores.FILE
    if not path.exists():
        return []
    scores = RunFolder(folder.parent).stage(folder.name).document(SuiteScores)
    assert scores is not None
    single = ("match", "unwanted_match", "accuracy", "exact")
    return [(suite, metric) for suite, figures in scores.suites.items() for metric in figures if metric in single]


def _scores(folder: Path, suite: str) -> dict[tuple[str, int], float] | None:
    """The mean score of each prompt's answers, in the file's order; None where there is none to an answer."""
    totals: dict[str, list[float]] = {}
    for line in read_answers(folder, suite):
        if line.score is None:
            return None
        totals.setdefault(line.prompt, []).append(line.score)
    # With the number of answers: another one is another question.
    return {(prompt, len(scores)): sum(scores) / len(scores) for prompt, scores in totals.items()}


def write_skills(run: Path, skills: Sequence[KeptSkill]) -> None:
    RunFolder(run).write(MergedSkills(tuple(skills)))
