"""The score `form`: the share of ten row checks of the audit that an answer passes.

The checks are those that the audit names rows by (`auditing/marks.py`, `auditing/leftovers.py`), each worth the same:
a heuristic of our own and no learned quality. 1 says that nothing looks wrong, not that the answer is good.
"""

from __future__ import annotations

import numpy as np

from posttrain.auditing.leftovers import repeats_prompt
from posttrain.auditing.marks import NULL_WORDS, marks_of
from posttrain.config.scores import FormScore
from posttrain.curation.rows import Pool, Tools
from posttrain.types import Task

CHECKS = 10


def form_score(settings: FormScore, pool: Pool, tools: Tools) -> np.ndarray:
    """In steps of a tenth; NaN for tasks, whose answer a verifier reads and nobody imitates."""
    rows = pool.rows
    score_R = np.full(len(rows), np.nan)
    if rows.kind is Task:
        return score_R
    with tools.progress.phase(f"score {settings.label}", total=len(pool), unit="rows") as phase:
        # One pass for the marks and one for the two checks that the marks do not hold: texts stay on disk.
        marks = marks_of(phase.track(rows.texts(pool.kept, "answer")))
        beside = np.zeros(len(pool))
        for place, row in enumerate(pool.kept.tolist()):
            answer = rows.text(row, "answer")
            beside[place] = (answer.strip() in NULL_WORDS) + repeats_prompt(rows.corpus.last_turn(row), answer)
    flags = (marks.cut, marks.special, marks.role, marks.think, marks.fence, marks.stray, marks.refusal)
    faults = beside + np.sum(flags, axis=0) + (marks.mojibake | marks.replaced)
    score_R[pool.kept] = 1 - faults / CHECKS
    return score_R
