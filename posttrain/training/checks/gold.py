"""Do the verifiers accept the rows' own answers? No model can be right on a row where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from posttrain.data.formats.advice import answer_path
from posttrain.data.refusals import quoted
from posttrain.rewards import Rubric, Scorer, gold_check, unjudged
from posttrain.rewards.rubric import GoldFailure
from posttrain.training.checks.preflight import Check, Status
from posttrain.training.rl.rollouts import Prompt
from posttrain.types import Task

GOLD_TASKS = 200
"""Tasks whose own answers the verifiers are tried on before training; `posttrain check` tries all."""


def tried_on(prompts: Sequence[Prompt], *, every: bool) -> Sequence[Prompt]:
    """The tasks on whose own answers verifiers are tried."""
    return prompts if every else prompts[:GOLD_TASKS]


def check_gold(
    prompts: Sequence[Prompt], rubric: Rubric, *, every: bool, progress: Callable[[float], None] | None = None
) -> Check:
    """Every verifier accepts the rows' own answers: no model can be right where it does not.

    progress: called with the number of tasks that verifiers were just tried on.
    """
    tried = tried_on(prompts, every=every)
    # Rewards that know the right answer; a length or format reward has none to be tried on.
    verifiers = [scorer for scorer in rubric.scorers if (scorer.inner or scorer).gold is not None]
    title = "verifiers accept the rows' own answers"
    if not verifiers:
        return Check("gold", title, "pass", "no reward verifies an answer")
    failures: list[GoldFailure] = []
    silent: list[Task] = []
    for first in range(0, len(tried), GOLD_TASKS):
        tasks = [prompt.task for prompt in tried[first : first + GOLD_TASKS]]
        failures += gold_check(tasks, verifiers)
        silent += unjudged(tasks, verifiers)
        if progress is not None:
            progress(len(tasks))
    evidence = {
        "tasks": len(tried),
        "unjudged": len(silent),
        "failures": [str(failure) for failure in failures[:20]],
    }
    judged = len(tried) - len(silent)
    if not judged:
        return _no_row_judged(silent, verifiers, evidence)
    # Another reward may still judge a row that no verifier can, so it is no warning then.
    only = len(verifiers) == len(rubric.scorers)
    without = f"; {len(silent):,} rows have no answer that could be checked, such as {silent[0].row}" if silent else ""
    if not failures:
        status: Status = "warn" if silent and only else "pass"
        remedy = "give these rows an `answer` or remove them: no completion of theirs gets a reward"
        said = f"all of {judged:,} tasks{without}"
        return Check("gold", title, status, said, evidence, remedy if status == "warn" else None)
    status = "fail" if len(failures) >= judged else "warn"
    remedy = "correct the answers of these rows or remove them, or choose another reward"
    said = f"{len(failures):,} of {judged:,} fail; {failures[0]}{without}"
    return Check("gold", title, status, said, evidence, remedy)


def _no_row_judged(tasks: Sequence[Task], verifiers: Sequence[Scorer], evidence: dict[str, Any]) -> Check:
    """Every reward would be None, and nothing would be learned: mostly a column that has another name."""
    others = sorted({key for task in tasks for key in task.metadata})
    likely = next((path for task in tasks if (path := answer_path(task.metadata)) is not None), None)
    wanted = likely if likely is not None else "YOUR_COLUMN"
    needed = dict.fromkeys((scorer.inner or scorer).needs for scorer in verifiers)
    names = " and ".join(f"`{scorer.name}`" for scorer in verifiers)
    detail = (
        f"{names} can judge none of {len(tasks):,} rows: they have no {' and no '.join(needed)}; "
        f"besides the prompt, {tasks[0].row} has {quoted(tasks[0].metadata) if tasks[0].metadata else 'no column'}"
    )
    remedy = (
        f"name the column that holds the answers, `data: {{path: ..., columns: {{answer: {wanted}}}}}`"
        if "answer" in needed
        else "give the rows what is missing (docs/rewards.md), or choose another reward"
    )
    return Check(
        "gold", "verifiers accept the rows' own answers", "fail", detail, {**evidence, "columns": others}, remedy
    )
