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
    shortcuts,
    trivial,
)
from posttrain.auditing.corpus import Kind
from posttrain.auditing.finding import Finding
from posttrain.auditing.subject import Subject
from posttrain.types import Comparison, Demonstration, Feedback, StepwiseFeedback, Task

ANSWERED: tuple[Kind, ...] = (Comparison, Feedback, StepwiseFeedback, Demonstration)
PAIRED: tuple[Kind, ...] = (Comparison,)
JUDGED: tuple[Kind, ...] = (Comparison, Feedback)
ALL: tuple[Kind, ...] = (*ANSWERED, Task)


@dataclass(frozen=True, slots=True)
class Check:
    """Check("length_bias", length.length_bias, "how far length alone tells the winner", JUDGED, cheap=True)"""

    name: str
    find: Callable[[Subject], Sequence[Finding]]
    summary: str
    kinds: tuple[Kind, ...]
    """Kinds of examples that it has something to say about."""
    cheap: bool = False
    """A recipe runs it before each preference stage: linear, below 2 seconds for 10,000 rows all together."""
    needs: str = ""
    """What it looks at beside the rows: `held_out`, `against`, `annotators`, `categories` or `model`."""


def _with_model(name: str) -> Callable[[Subject], Sequence[Finding]]:
    """A check of policy.py, which is loaded when there is a model to ask: it needs torch."""

    def find(subject: Subject) -> Sequence[Finding]:
        if subject.measured is None:
            return []
        found: Sequence[Finding] = getattr(import_module("posttrain.auditing.policy"), name)(subject)
        return found

    return find


_TABLE = (
    Check("refused_rows", trivial.refused_rows, "rows that cannot be used, by reason", ALL, cheap=True),
    Check("trivial_pairs", trivial.trivial_pairs, "two sides that say the same", PAIRED, cheap=True),
    Check("empty_sides", trivial.empty_sides, "responses without a word", ANSWERED, cheap=True),
    Check("length_bias", length.length_bias, "how far length alone tells the winner", JUDGED, cheap=True),
    Check("first_tokens", shortcuts.first_tokens, "how far the first words tell it", JUDGED, cheap=True),
    Check("last_tokens", shortcuts.last_tokens, "how far the last words tell it", JUDGED),
    Check("formatting", shortcuts.formatting, "how far lists, bold and code tell it", JUDGED),
    Check("bag_of_words", shortcuts.bag_of_words, "how far words out of order tell it", JUDGED),
    Check("special_tokens", artefacts.special_tokens, "names of special tokens in the text", ANSWERED, cheap=True),
    Check("role_markers", artefacts.role_markers, "'Assistant:' in the text", ANSWERED, cheap=True),
    Check("white_space", artefacts.white_space, "blanks at one side's ends", ANSWERED, cheap=True),
    Check("unbalanced_marks", artefacts.unbalanced_marks, "tags and fences that do not pair up", ANSWERED, cheap=True),
    Check("truncation", artefacts.truncation, "answers that stop in the middle", ANSWERED, cheap=True),
    Check("refusals", artefacts.refusals, "refusals, and the side they are on", ANSWERED, cheap=True),
    Check("repeated_prompt", leftovers.repeated_prompt, "answers that begin with their prompt", ANSWERED, cheap=True),
    Check("null_words", leftovers.null_words, "nan, None and null where a text belongs", ALL, cheap=True),
    Check("stored_turns", leftovers.stored_turns, "conversations stored as one text", ALL, cheap=True),
    Check("html_entities", leftovers.html_entities, "&lt; and its kin in prose", ALL, cheap=True),
    Check("encoding", language.encoding, "broken, lost and invisible characters", ANSWERED, cheap=True),
    Check("languages", language.languages, "answers in another language than their prompt", ANSWERED),
    Check("duplicates", duplicates.duplicates, "rows that stand twice", ALL, cheap=True),
    Check("near_duplicates", duplicates.near_duplicates, "rows that nearly stand twice", ALL),
    Check("split_overlap", duplicates.split_overlap, "rows that are trained and measured on", ALL, needs="held_out"),
    Check("contradictions", agreement.contradictions, "the same pair with both winners", PAIRED, cheap=True),
    Check("cycles", agreement.cycles, "responses that beat one another in a circle", PAIRED, cheap=True),
    Check("disagreement", agreement.disagreement, "votes that do not agree", PAIRED, cheap=True),
    Check(
        "category_length", length.category_length, "length bias within one kind of row", PAIRED, needs="categories"
    ),
    Check("annotators", agreement.annotators, "judges unlike the others", PAIRED, needs="annotators"),
    Check("contamination", contamination.contamination, "parts of evaluation sets", ALL, needs="against"),
    Check("label_balance", balance.label_balance, "good against bad responses, and weights", (Feedback,), cheap=True),
    Check("stale_negatives", _with_model("stale_negatives"), "rejected sides it never says", PAIRED, needs="model"),
    Check("separated_pairs", _with_model("separated_pairs"), "pairs told apart already", PAIRED, needs="model"),
    Check("wrong_ranking", _with_model("wrong_ranking"), "pairs that it ranks wrongly", PAIRED, needs="model"),
    Check("displacement", _with_model("displacement"), "sides too alike inside", PAIRED, needs="model"),
)  # fmt: skip

CHECKS: dict[str, Check] = {check.name: check for check in _TABLE}
