"""The checks, as a literal table: what each looks at, and whether it is cheap enough to run before every training.

A new check is a function from a `Subject` to findings, and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from posttrain.auditing import (
    agreement,
    artefacts,
    balance,
    contamination,
    duplicates,
    language,
    leftovers,
    length,
    origins,
    shortcuts,
    trivial,
)
from posttrain.auditing.corpus import ExampleKind
from posttrain.auditing.finding import AuditFinding
from posttrain.auditing.subject import Subject
from posttrain.types import Comparison, Demonstration, Feedback, StepwiseFeedback, Task

ANSWERED: tuple[ExampleKind, ...] = (Comparison, Feedback, StepwiseFeedback, Demonstration)
PAIRED: tuple[ExampleKind, ...] = (Comparison,)
JUDGED: tuple[ExampleKind, ...] = (Comparison, Feedback)
ALL_KINDS: tuple[ExampleKind, ...] = (*ANSWERED, Task)


@dataclass(frozen=True, slots=True)
class AuditCheck:
    """AuditCheck("length_bias", length.length_bias, "how far length alone tells the winner", JUDGED, cheap=True)"""

    name: str
    find: Callable[[Subject], Sequence[AuditFinding]]
    summary: str
    kinds: tuple[ExampleKind, ...]
    """Kinds of examples that it has something to say about."""
    cheap: bool = False
    """A recipe runs it before each preference stage: linear, below 2 seconds for 10,000 rows all together."""
    needs: str = ""
    """What it looks at beside the rows: `held_out`, `against`, `annotators`, `categories`, `origins` or
    `model`."""


def _with_model(name: str) -> Callable[[Subject], Sequence[AuditFinding]]:
    """A check of policy.py, which is loaded when there is a model to ask: it needs torch."""

    def find(subject: Subject) -> Sequence[AuditFinding]:
        if subject.measured is None:
            return []
        check: Callable[[Subject], Sequence[AuditFinding]] = getattr(import_module("posttrain.auditing.policy"), name)
        return check(subject)

    return find


# Findings of one severity are printed in this order: what makes the data unusable first, what needs a model last.
_CHECKS = (
    AuditCheck("refused_rows", trivial.refused_rows, "rows that cannot be used, by reason", ALL_KINDS, cheap=True),
    AuditCheck("trivial_pairs", trivial.trivial_pairs, "two sides that say the same", PAIRED, cheap=True),
    AuditCheck("empty_sides", trivial.empty_sides, "responses without a word", ANSWERED, cheap=True),
    AuditCheck("length_bias", length.length_bias, "how far length alone tells the winner", JUDGED, cheap=True),
    AuditCheck("first_tokens", shortcuts.first_tokens, "how far the first words tell it", JUDGED, cheap=True),
    AuditCheck("last_tokens", shortcuts.last_tokens, "how far the last words tell it", JUDGED),
    AuditCheck("formatting", shortcuts.formatting, "how far lists, bold and code tell it", JUDGED),
    AuditCheck("bag_of_words", shortcuts.bag_of_words, "how far words out of order tell it", JUDGED),
    AuditCheck("special_tokens", artefacts.special_tokens, "names of special tokens in the text", ANSWERED, cheap=True),
    AuditCheck("role_markers", artefacts.role_markers, "'Assistant:' in the text", ANSWERED, cheap=True),
    AuditCheck("white_space", artefacts.white_space, "blanks at one side's ends", ANSWERED, cheap=True),
    AuditCheck(
        "unbalanced_marks", artefacts.unbalanced_marks, "tags and fences that do not pair up", ANSWERED, cheap=True
    ),
    AuditCheck("truncation", artefacts.truncation, "answers that stop in the middle", ANSWERED, cheap=True),
    AuditCheck("refusals", artefacts.refusals, "refusals, and the side they are on", ANSWERED, cheap=True),
    AuditCheck(
        "repeated_prompt", leftovers.repeated_prompt, "answers that begin with their prompt", ANSWERED, cheap=True
    ),
    AuditCheck("null_words", leftovers.null_words, "nan, None and null where a text belongs", ALL_KINDS, cheap=True),
    AuditCheck("stored_turns", leftovers.stored_turns, "conversations stored as one text", ALL_KINDS, cheap=True),
    AuditCheck("html_entities", leftovers.html_entities, "&lt; and its kin in prose", ALL_KINDS, cheap=True),
    AuditCheck("encoding", language.encoding, "broken, lost and invisible characters", ANSWERED, cheap=True),
    AuditCheck("languages", language.languages, "answers in another language than their prompt", ANSWERED),
    AuditCheck("duplicates", duplicates.duplicates, "rows that stand twice", ALL_KINDS, cheap=True),
    AuditCheck("near_duplicates", duplicates.near_duplicates, "rows that nearly stand twice", ALL_KINDS),
    AuditCheck(
        "split_overlap", duplicates.split_overlap, "rows that are trained and measured on", ALL_KINDS, needs="held_out"
    ),
    AuditCheck("contradictions", agreement.contradictions, "the same pair with both winners", PAIRED, cheap=True),
    AuditCheck("cycles", agreement.cycles, "responses that beat one another in a circle", PAIRED, cheap=True),
    AuditCheck("disagreement", agreement.disagreement, "votes that do not agree", PAIRED, cheap=True),
    AuditCheck(
        "category_length", length.category_length, "length bias within one kind of row", PAIRED, needs="categories"
    ),
    AuditCheck("annotators", agreement.annotators, "judges unlike the others", PAIRED, needs="annotators"),
    AuditCheck("contamination", contamination.contamination, "parts of evaluation sets", ALL_KINDS, needs="against"),
    AuditCheck("origins", origins.origins, "which models made the rows", ALL_KINDS, needs="origins"),
    AuditCheck(
        "label_balance", balance.label_balance, "good against bad responses, and weights", (Feedback,), cheap=True
    ),
    AuditCheck(
        "stale_negatives", _with_model("stale_negatives"), "rejected sides it never says", PAIRED, needs="model"
    ),
    AuditCheck("separated_pairs", _with_model("separated_pairs"), "pairs told apart already", PAIRED, needs="model"),
    AuditCheck("wrong_ranking", _with_model("wrong_ranking"), "pairs that it ranks wrongly", PAIRED, needs="model"),
    AuditCheck("displacement", _with_model("displacement"), "sides too alike inside", PAIRED, needs="model"),
)  # fmt: skip

AUDIT_CHECKS: dict[str, AuditCheck] = {check.name: check for check in _CHECKS}
