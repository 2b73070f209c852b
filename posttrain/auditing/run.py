"""`audit`: examples to findings. The order: read into a `Corpus`, gather what the checks need, run them, sort.

report = audit(read("pairs.jsonl"), against=["embedded"], model="smollm2-135m-instruct")
print(report)                                  # the findings, worst first, each with its remedy
report.write(Path("audit"))                    # findings.jsonl, audit.json, audit.html
report.fix(Path("clean.jsonl"))                # a cleaned copy, and clean.log.jsonl: what was done, row by row
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.arguments import checked_list, checked_name, checked_seed, checked_text, wrong_argument
from posttrain.auditing.checks import AUDIT_CHECKS, AuditCheck
from posttrain.auditing.contamination import evaluation_set
from posttrain.auditing.corpus import Corpus
from posttrain.auditing.finding import AuditFinding, worst_first
from posttrain.auditing.fix import Fixed, fix
from posttrain.auditing.origin_counts import Origins
from posttrain.auditing.pictures import record
from posttrain.auditing.report import Findings
from posttrain.auditing.subject import EvaluationSet, Subject
from posttrain.data.given import as_examples
from posttrain.data.read import Examples
from posttrain.data.row_columns import categories_of, column_of
from posttrain.data.sources.json_rows import Broken, json_rows
from posttrain.data.sources.shipped import EVALUATION_SETS
from posttrain.data.write import write_jsonl
from posttrain.errors import EmptyDatasetError
from posttrain.runs.progress import Progress
from posttrain.runs.showing import Shown, showing
from posttrain.types import Comparison, Example, RowRef

if TYPE_CHECKING:
    from posttrain.models.folders.loading import LoadedModel

ANNOTATOR_COLUMNS = (
    "annotator",
    "annotator_id",
    "annotator_name",
    "worker_id",
    "labeler",
    "labeler_id",
    "rater",
    "rater_id",
)
"""Columns in which a file may say who judged a row."""


class AuditReport(Findings):
    """What an audit found, worst first; prints as a table for people."""

    def write(self, folder: str | Path, *, pictures: bool = True) -> Path:
        """findings.jsonl and audit.json, and with `pictures` audit.html, in a folder; returns the page or folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "findings.jsonl", (finding.record() for finding in self.findings))
        write_jsonl(folder / "audit.json", [record(self, pictures=pictures)])
        if not pictures:
            return folder
        from posttrain.report.audit_page import write_audit_page

        return write_audit_page(folder)

    def fix(self, out: str | Path) -> Fixed:
        """Write a cleaned copy and its log; see posttrain.auditing.fix."""
        return fix(self, Path(out))


def audit(
    examples: Iterable[Example] | Any,
    *,
    held_out: Iterable[Example] | Any | None = None,
    against: Any = (),
    model: str | Path | LoadedModel | None = None,
    checks: Sequence[str] | None = None,
    cheap: bool = False,
    category: str | None = None,
    seed: int = 0,
    progress: Shown = None,
) -> AuditReport:
    """Look at a data set before anything is trained on it.

    Args:
        examples: what `read` takes: a path, rows, a table, whose bad rows are then among the findings; or what it gave,
            with `bad_rows="skip"` for the same.
        held_out: as `examples`: rows that will be measured on; what they share with `examples` is a finding.
        against: evaluation sets: a bundled name (`embedded`, `human-eval`), a file, rows, or a list of these.
        model: the policy that will be trained, for the checks that ask a model.
        checks: names in AUDIT_CHECKS; None runs all that apply.
        cheap: only those that a recipe runs before each preference stage.
        category: column that says what kind each row is; `category`, `source` and their kin are found by themselves.
        progress: None shows it in a terminal or notebook, False never.

    Raises:
        DataError: what reading raises; no row has the column `category`.
        ConfigError: a check has no such name.
        MissingExtraError: an evaluation set needs a package that is not installed.
    """
    started = time.monotonic()
    selected = _selected_checks(checks, cheap)
    if category is not None:
        checked_text("category", category, "topic")
    checked_seed(seed)
    with showing(progress) as shown:
        examples = as_examples(examples, bad_rows="skip", scan=False)
        sets = [item if isinstance(item, EvaluationSet) else evaluation_set(item) for item in _each_set(against)]
        counted = Origins(_name_of(model)) if any(check.needs == "origins" for check in selected) else None
        subject = _subject(examples, sets, selected, category, seed, shown, counted)
        if held_out is not None:
            subject.held_out = Corpus(as_examples(held_out, bad_rows="skip", scan=False), seed=seed)
            if not len(subject.held_out):  # every share of nothing is a warning of numpy's, and no finding
                raise wrong_argument("held_out", held_out, expected="rows", remedy="leave `held_out` out")
        if model is not None and subject.corpus.kind is Comparison:
            subject.measured = _measure(subject.corpus, examples, model, shown)
        findings, ran = _run_checks(selected, subject, shown)
    return AuditReport(worst_first(findings), subject, examples, ran, time.monotonic() - started)


def _each_set(against: Any) -> list[Any]:
    """One evaluation set may stand for a list of one: a name, a path, or rows."""
    if isinstance(against, str | Path | EvaluationSet):
        return [against]
    if against is None or isinstance(against, Mapping):
        raise wrong_argument(
            "against",
            against,
            expected="a list of names, files, or rows of evaluation sets",
            remedy=f"write `against=[{', '.join(map(repr, EVALUATION_SETS[:2]))}]`, or leave `against` out",
        )
    rows = not isinstance(against, list | tuple) or any(isinstance(item, Mapping) for item in against)
    return [against] if rows else list(against)


def _subject(
    examples: Iterable[Example],
    sets: Sequence[EvaluationSet],
    selected: Sequence[AuditCheck],
    category: str | None,
    seed: int,
    progress: Progress,
    origins: Origins | None = None,
) -> Subject:
    """The rows as a corpus, with what the selected checks need beside the texts."""
    refused: dict[str, tuple[RowRef, ...]] = {}
    with progress.phase("audit: reading", unit="rows") as phase:
        corpus, columns = _read_corpus(examples, refused, phase.track, seed, origins)
    subject = Subject(corpus, against=sets, refused=refused, origins=origins, seed=seed)
    # Columns that no format reads cost another pass over the files, so only checks that ask for them pay it.
    if any(check.needs == "annotators" for check in selected):
        subject.annotator_R = _annotators(examples, columns, corpus)
    if isinstance(examples, Examples) and len(corpus) and any(check.needs == "categories" for check in selected):
        category_of = categories_of(examples, category)
        subject.category_R = (
            [category_of.get(ref, "") for ref in map(corpus.ref, range(len(corpus)))] if category_of else None
        )
    return subject


def _run_checks(
    checks: Sequence[AuditCheck], subject: Subject, progress: Progress
) -> tuple[list[AuditFinding], dict[str, float]]:
    """(what the checks that apply find, the seconds that each took)."""
    findings: list[AuditFinding] = []
    ran: dict[str, float] = {}
    applying = [check for check in checks if _applies(check, subject)]
    with progress.phase("audit: checks", total=len(applying), unit="checks") as phase:
        for check in applying:
            phase.advance(0, note=check.name)
            began = time.monotonic()
            findings += check.find(subject)
            ran[check.name] = time.monotonic() - began
            phase.advance()
    return findings, ran


def _selected_checks(names: Sequence[str] | None, cheap: bool) -> list[AuditCheck]:
    if names is not None:
        names = [names] if isinstance(names, str) else names
        names = checked_list("checks", names, of="names of checks", example='["duplicates"]')
        for name in names:
            checked_name("check", name, AUDIT_CHECKS)
    return [
        check
        for check in AUDIT_CHECKS.values()
        if (names is None or check.name in names) and (check.cheap or not cheap)
    ]


def _applies(check: AuditCheck, subject: Subject) -> bool:
    # No row is left: every figure of the other checks would be a share of nothing.
    if not len(subject.corpus):
        return check.name == "refused_rows"
    present = {
        "": True,
        "held_out": subject.held_out is not None,
        "against": bool(subject.against),
        "annotators": subject.annotator_R is not None,
        "categories": subject.category_R is not None,
        "origins": subject.origins is not None and subject.origins.rows > 0,
        "model": subject.measured is not None,
    }
    return subject.corpus.kind in check.kinds and present[check.needs]


# ---------------------------------------------------------------- reading


def _read_corpus(
    examples: Iterable[Example],
    refused: dict[str, tuple[RowRef, ...]],
    track: Any,
    seed: int,
    origins: Origins | None,
) -> tuple[Corpus, set[str]]:
    """(the corpus, columns that the format does not read); rows that reading skips go to `refused`.

    Reading counts what it skips and forgets the rows, so they are written to a file on the way and read back.
    """
    if not isinstance(examples, Examples):
        return Corpus(track(examples), seed=seed), set()
    if examples.options.bad_rows == "stop":
        return Corpus(track(_counted(examples, origins)), seed=seed), examples.counts.unused_columns
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "refused.jsonl"
        recording = Examples(examples.sources, replace(examples.options, rejected_path=path))
        try:
            corpus = Corpus(track(_counted(recording, origins)), seed=seed)
        except EmptyDatasetError:
            corpus = Corpus([], seed=seed)  # no row is good; the file of the refused ones is whole by then
        refused.update(_refused(path))
    return corpus, recording.counts.unused_columns if len(corpus) else set()


def _counted(examples: Examples, origins: Origins | None) -> Iterable[Example]:
    """The examples; who made them is counted on the way, since their rows are not kept."""
    for example, row in examples.with_rows():
        if origins is not None:
            origins.add(example.row, row)
        yield example


def _name_of(model: str | Path | LoadedModel | None) -> str | None:
    """As the origins of its rows name it."""
    if model is None or isinstance(model, str | Path):
        return None if model is None else str(model)
    from posttrain.models.folders.loading import LoadedModel

    # Anything else is refused where the model is loaded.
    return model.source.name if isinstance(model, LoadedModel) else None


def _refused(path: Path) -> dict[str, tuple[RowRef, ...]]:
    rows_of_reason: dict[str, list[RowRef]] = defaultdict(list)
    if not path.stat().st_size:
        return {}
    with path.open("rb") as file:
        for _, row, _ in json_rows(file, path.name):
            assert not isinstance(row, Broken)  # written by `JsonlWriter` a moment ago
            source, _, number = str(row["row"]).rpartition(", row ")
            rows_of_reason[row["reason"]].append(RowRef(source, int(number)))
    return {reason: tuple(rows) for reason, rows in rows_of_reason.items()}


def _annotators(examples: Iterable[Example], unused: set[str], corpus: Corpus) -> list[str] | None:
    """The judge of each row, from a column of the file that training does not read; None without such a column."""
    # Of the unused columns alone: a column that the format reads means something else there.
    columns = [name for name in ANNOTATOR_COLUMNS if name in unused]
    if not columns or not isinstance(examples, Examples):
        return None
    annotator_of = column_of(examples, columns[0])
    return [annotator_of.get(ref, "") for ref in map(corpus.ref, range(len(corpus)))]


def _measure(corpus: Corpus, examples: Iterable[Example], model: str | Path | LoadedModel, progress: Progress) -> Any:
    # Here and not above: torch takes a second to import, and nearly all audits do without a model.
    from posttrain.auditing.policy import measure_pairs
    from posttrain.data.encode import Encoder
    from posttrain.models.folders.loading import LoadedModel, load

    loaded = model if isinstance(model, LoadedModel) else load(model, say=progress.say)
    with progress.phase("audit: log-probs", total=len(corpus), unit="pairs") as phase:
        return measure_pairs(
            corpus, examples, loaded.model, Encoder(loaded.tokenizer, loaded.speech.settings()), progress=phase.advance
        )
