"""`select`: rows to a selection. The order: read, each step in turn, the random twin, what is written.

picked = select("chat.jsonl", steps=[{"kind": "deduplicate"}, {"kind": "budget", "rows": 1000}], out="picked")
print(picked)                    # what each step took, by reason
picked.kept, picked.twin         # rows as their files have them, read from disk as they are asked for
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_list, checked_path, checked_seed, wrong_argument
from posttrain.config.select import Decontaminate, SelectSettings
from posttrain.config.step import StepSettings
from posttrain.config.values import Settings
from posttrain.curation.rows import Pool, Rows, Tools, require_whole
from posttrain.curation.selection import WRITTEN, Selection, StepResult
from posttrain.curation.steps.table import STEPS
from posttrain.curation.stored import StoredSteps, step_key
from posttrain.curation.twin import tokens_of, twin_of
from posttrain.data.formats.table import KIND_NAMES
from posttrain.data.given import as_examples
from posttrain.data.read import Examples
from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.runs.progress import Progress
from posttrain.runs.showing import Shown, showing
from posttrain.types import StepwiseFeedback

STEPS_FOLDER = ".steps"
"""Results of single steps, in the folder of the selection: what a run that was killed, or one with another budget, goes
on from. May be removed at any time."""
REFUSED = "refused.jsonl"


def select(
    data: Any,
    *,
    steps: Sequence[StepSettings | Mapping[str, Any]],
    out: str | Path | None = None,
    seed: int = 0,
    order: str = "input",
    tokenizer: str | Path | None = None,
    token_twin: bool = False,
    progress: Shown = None,
) -> Selection:
    """Choose rows by steps, say of each other row why it went, and draw a random twin of the same size.

    Args:
        data: what `read` takes, a path, rows, a table; or what it gave. Unreadable rows stop it, unless it was read
            with `bad_rows="skip"`: they are then among the rejected ones.
        steps: as a recipe has them: `{"kind": "budget", "rows": 1000}`; docs/curation.md shows all.
        out: a folder for data.jsonl, rejected.jsonl, random.jsonl and manifest.json; None writes nothing. Run again
            with the same rows, it computes only those steps whose settings have changed.
        order: "input", or "choice": the best row first.
        tokenizer: the model whose tokens are counted, where something counts tokens.
        token_twin: draw a second twin that has as many tokens as the selection.
        progress: None shows it in a terminal or notebook, False never.

    Raises:
        ConfigError, UnknownKeyError: a step that there is not, or an order of steps that hides leaks.
        DataError: what reading raises; or no row is left after a step.
    """
    listed = checked_list("steps", steps, of="steps", example='[{"kind": "deduplicate"}]')
    given: dict[str, Any] = {
        # As they would be written: a record and a recipe's entry are validated alike.
        "steps": [step.model_dump(exclude_unset=True) if isinstance(step, Settings) else step for step in listed],
        "order": order,
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "token_twin": token_twin,
    }
    settings = SelectSettings(**given)
    checked_seed(seed)
    folder = None if out is None else checked_path("out", out, "picked")
    with showing(progress) as shown:
        tools = Tools(seed, shown, model=settings.tokenizer)
        return select_rows(as_examples(data, scan=False), settings, folder, tools)


def select_rows(examples: Any, settings: SelectSettings, out: Path | None, tools: Tools) -> Selection:
    """`select` of rows that are read already, by settings that are validated already: the one door for the command, a
    recipe's stage and a program.

    Raises:
        ConfigError, DataError: as `select`.
    """
    if out is not None:
        _require_elsewhere(examples, out)
    stored = StoredSteps(None if out is None else out / STEPS_FOLDER)
    tools = replace(tools, cache=stored.folder, model=settings.tokenizer or tools.model)
    rows, refused = _read(examples, stored.folder, tools.progress)
    pool, results, keys = Pool.of(rows), [], []
    key, clean = rows.fingerprint, pool
    for place, step in enumerate(settings.steps, 1):
        key = step_key(key, step, seed_of(tools.seed, f"step {place}"), tools.model if step.asks_model else None)
        keys.append(key)
        result = _run_step(step, place, key, pool, stored, tools)
        results.append(result)
        pool = pool.after(result.taken)
        if not len(pool):
            raise _nothing_left(step, result)
        if isinstance(step, Decontaminate):
            clean = pool
    stored.keep_only(keys)
    selection = Selection(settings, rows, refused, tuple(results), pool, tools.seed)
    twins = [twin_of(selection, clean, seed_of(tools.seed, "twin"))]
    if settings.token_twin:
        counting = replace(tools, seed=seed_of(tools.seed, "token twin"))
        twins.append(twin_of(selection, clean, counting.seed, tokens_of(selection, clean, counting)))
    selection = replace(selection, twins=tuple(twins))
    if out is not None:
        selection = selection.write(out)
    return selection


def seed_of(seed: int, purpose: str) -> int:
    """A random stream of its own for each purpose: a step more or less leaves the draws of the others as they were."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4], "little")


def _read(examples: Any, folder: Path | None, progress: Progress) -> tuple[Rows, Path | None]:
    """The rows, and the file of those that were refused, if any were and there is a folder for it."""
    refused = None
    if isinstance(examples, Examples) and examples.options.bad_rows == "skip" and folder is not None:
        # Where they are listed already that list stays as it is, and its lines are taken over.
        refused = examples.options.rejected_path or folder / REFUSED
        examples = Examples(examples.sources, replace(examples.options, rejected_path=refused))
    with progress.phase("reading", unit="rows") as phase:
        rows = Rows(examples, phase)
    if not len(rows):
        raise wrong_argument("data", examples, expected="rows to choose from", remedy="name a file that holds rows")
    if rows.kind is StepwiseFeedback:
        raise ConfigError(
            "labelled steps cannot be selected by answers",
            where=str(rows.ref(0)),
            found=KIND_NAMES[rows.kind],
            expected="demonstrations, comparisons, feedback or tasks",
            remedy="select the tasks that the steps answer, before the steps are labelled",
        )
    return rows, refused


def _require_elsewhere(examples: Any, out: Path) -> None:
    """Raises ConfigError for a selection that would be written over the rows that it is made of."""
    written = {(out / name).resolve() for name in WRITTEN}
    sources = examples.sources if isinstance(examples, Examples) else ()
    if own := next((source.name for source in sources if Path(source.name).resolve() in written), None):
        raise ConfigError(
            "the selection would be written over its own rows",
            where=str(out),
            found=own,
            expected="another folder than the one that the rows lie in",
            remedy="give another folder (--out), or rename the file",
        )


def _run_step(step: StepSettings, place: int, key: str, pool: Pool, stored: StoredSteps, tools: Tools) -> StepResult:
    found = stored.load(key)
    if found is not None:
        taken, seconds = found
        tools.progress.say(f"{step.label}: computed before, in {seconds:.1f} s")
    else:
        began = time.monotonic()
        taken = STEPS[type(step)](step, pool, replace(tools, seed=seed_of(tools.seed, f"step {place}")))
        seconds = time.monotonic() - began
        require_whole(step.label, pool, taken)
        stored.save(place, key, taken, seconds)
    return StepResult(step, pool, taken, seconds, computed_before=found is not None)


def _nothing_left(step: StepSettings, result: StepResult) -> EmptyDatasetError:
    first = result.taken.removed[0]
    return EmptyDatasetError(
        f"no row is left after the step `{step.label}`",
        where=f"steps: {step.label}",
        found=", ".join(f"{count:,} rows: {reason}" for reason, count in result.by_reason.items()),
        expected="at least one row that it lets through",
        example=f"{result.pool.rows.ref(first.row)}: {first.message}",
        remedy="loosen the step: see with a run without it what the rows are like (manifest.json has the scores)",
    )
