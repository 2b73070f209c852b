r"""Where a response says its answer: in a box, behind ####, behind "the answer is", in its last sentence.

    boxed(r"So \boxed{\frac{1}{2}}.")                                       # "\frac{1}{2}"
    stated("The answer is 5. This took 3 steps.", want="number")            # "5"
    stated("The correct option is **B**.", want="choice")                   # "B"
    stated("The answer is 17. Or 18.", want="number")                       # "17 \text{ or } 18": several, so none

Every search is linear in the text, or bounded: a policy is free to write ten thousand opened boxes.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from posttrain.rewards.forms import Form, Labelled, Named, Quantity, Several, Unread, Words
from posttrain.rewards.formula import Term, number
from posttrain.rewards.numbers import last_number
from posttrain.rewards.reading import read
from posttrain.rewards.units import SCALES
from posttrain.rewards.values import rational

Want = Literal["number", "choice", "other"]
"""What the row's answer is: a number (also with a unit, or a formula without unknowns), a choice's letter, the rest."""

REACH = 4_000
"""Characters from the end in which an answer without a box is looked for."""
MOST_BOXES = 10
SENTENCES = 20
LONGEST_SENTENCE = 600
WORDS = 12
"""Words at the end of a sentence that may be part of its answer."""


_OPERATION = re.compile(r"[\d)\]}%]\s*(?:[-+*/^\u2212\u00d7\u00b7\u00f7]|\\times|\\cdot|\\div)\s*\Z")
"""What stands before a number that is an operand, and so no answer of its own."""
_SIGNS = ("+", "-", "*", "/", "^", "\u2212", "\u00d7", "\u00b7", "\u00f7")


def wanted(gold: str) -> Want:
    """What kind of answer the row has, which decides what is looked for in a response without a box."""
    form = read(gold)
    label = form.label if isinstance(form, Labelled) else ""
    if isinstance(form, Quantity) and form.unit is None and form.term.op == "sym" and form.term.name in "ABCDEFGHIJ":
        label = form.term.name
    if label:
        return "choice"
    return "number" if isinstance(form, Quantity) and not form.term.names() else "other"


def gold_answer(answer: str) -> str:
    """The row's answer without what some data sets put around it: GSM8K's working and `####`, MATH's solution."""
    inside = boxed(answer)
    if inside is not None:
        return inside
    return answer.rsplit("####", 1)[-1].strip()


def final_value(text: str) -> Fraction | None:
    """The number that a text ends on, exactly: the one in its box, behind "the answer is", or the last one.

    final_value("The answer is 5. This took 3 steps.") == 5; final_value("It is 1/2.") == Fraction(1, 2). None where it
    names none, or leaves a choice: "5 or 6".
    """
    inside = boxed(text)
    answers = stated(text, want="number") if inside is None else inside
    form = read(answers) if answers else None
    form = form.form if isinstance(form, Named) else form
    if isinstance(form, Quantity):
        value = rational(form.term)
        if value is not None and not _is_sum(form.term):
            return value
    if isinstance(form, Several) or (answers and _OR.search(answers)):
        return None
    last = last_number(text if inside is None else inside)
    return None if last is None else Fraction(last)


# ---------------------------------------------------------------- boxes

_BRACES = re.compile(r"(?P<box>\\f?boxed\s*\{)|(?P<escaped>(?<!\\)\\[{}])|(?P<open>\{)|(?P<close>\})")
_JOINED = re.compile(r"[\s$.,;:*]*(?:\b(?:and|or|und|oder|et|ou)\b|,|;)?[\s$:*]*")
_BOX = re.compile(r"\\f?boxed\s*(?=\{)")


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` that is closed; None if there is none.

    Of boxes in one another the outer one counts. Several that only "and", "or" or a comma parts are several answers:
    \boxed{5} or \boxed{6} says both.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    contents = [boxes[-1]]
    for box in reversed(boxes[-MOST_BOXES:-1]):
        between = text[box[1] + 1 : contents[0][2]]
        if len(between) > 40 or not between.strip(" $\n") or _JOINED.fullmatch(between) is None:
            break
        contents.insert(0, box)
    answers: list[str] = []
    for start, end, _ in contents:
        inside = _BOX.sub("", text[start:end]).strip()
        if inside not in answers:
            answers.append(inside)
    return r" \text{ or } ".join(answers)


def is_cut(text: str) -> bool:
    """Whether a box is opened and none is closed: what stands in it is the beginning of an answer."""
    return _BOX.search(text) is not None and not _boxes(text)


def last_box_is_open(text: str) -> bool:
    """Whether the last box is opened and not closed."""
    starts = [match.start() for match in _BOX.finditer(text)]
    return bool(starts) and not _boxes(text[starts[-1] :])


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(start and end of the content, start of the command) of each outermost closed box, in one pass."""
    boxes: list[tuple[int, int, int]] = []
    stack: list[tuple[bool, int, int]] = []
    for match in _BRACES.finditer(text):
        if match.lastgroup in ("box", "open"):
            stack.append((match.lastgroup == "box", match.end(), match.start()))
        elif match.lastgroup == "close" and stack:
            is_box, start, begin = stack.pop()
            if is_box:
                while boxes and boxes[-1][0] > start:
                    boxes.pop()  # it stood in this one
                boxes.append((start, match.start(), begin))
    return boxes


# ---------------------------------------------------------------- sentences

_CUE = re.compile(
    r"\b(?:answers?|option|choice|result|solution)\b(?:[ \t]+(?:to|of|for)\b[^\n.:=]{0,80}?)?"
    r"[*_ \t]*(?:\b(?:is|are|would be|should be|must be|equals)\b|:|=)",
    re.IGNORECASE,
)
_BEHIND_CUE = re.compile(
    r"[\s:*_=]*(?:(?:therefore|thus|then|simply|just|exactly|option|choice|the|letter)\b[\s:*_]*)*", re.IGNORECASE
)
_DISPLAYED = re.compile(r"\$\$(.{1,600}?)\$\$|\\\[(.{1,600}?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bapprox)(?<!\bca)(?<!\bno)\.(?=[*_$)\"']{0,3}(?:\s|$))|[!?](?=\s+[A-Z])|\n"
)
_HEDGE = re.compile(r"[.\s*_$)\"']*(?:or|alternatively|maybe|perhaps|possibly|oder)\b[\s,:]*", re.IGNORECASE)
_SPAN = re.compile(r"(?<!\\)\$(?=\S)([^$\n]{0,300}[^$\s\\])\$(?!\d)|\\\(([^\n]{1,300}?)\\\)|\\\[([^\n]{1,300}?)\\\]")
_REASONS = re.compile(
    r"\s+(?:because|since|as|for|where|when|with|after|which|so|in|on|at|if|by|and so|not|from|given|units?|is|per)\b|"
    r"\s*[,;]\s*(?=[A-Za-z])|\s+\(|\s+[-\u2013\u2014]\s+(?=[A-Za-z])"
)
_OR = re.compile(r"\b(?:or|oder|ou|maybe|perhaps|possibly)\b|\\lor\b|\\text\s*\{\s*or\b", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\b(?:not|never|than|least|most|over|under|nor|except|between|around)|n['\u2019]t)[\s*_$(]*$", re.IGNORECASE
)
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-+\u2212])?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*[/^]\s*\{?[-\u2212]?\d[\d,]*(?:\.\d+)?\}?)?\s?\\?%?"
    r"|\\[dt]?frac\s*(?:\{[^{}]{1,60}\}\s*\{[^{}]{1,60}\}|\d\s*\d)"
)
_LABEL = re.compile(
    r"^\W*(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\W*)?(?:\\text(?:bf)?\{)?"
    r"(?:\(([A-J])\)|([A-J])(?=$|[).:,*_}\\]|\s*$))"
)
"""A letter at the beginning; "A triangle" begins with none."""
_LABELS_INSIDE = (
    re.compile(r"\b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-J])\b"),
    re.compile(r"(?:^|[\s*_(])\(?([A-J])\)?[\s*_).]*$"),
    re.compile(r"\(([A-J])\)"),
)
_JOINED_LABELS = re.compile(
    r"\b([A-J])\b[)*_\s]*(?:\b(?:or|and|oder|und)\b|[,/&])[(*_\s]*(?:or\s+|and\s+)?\(?([A-J])\b"
)
_TOLD_LABEL = re.compile(r"^\W*([A-J])\b")


def stated(text: str, *, want: Want) -> str:
    """What a text without a box answers; empty if it answers nothing."""
    text = text[-REACH:]
    if "####" in text:
        return text.rsplit("####", 1)[1].strip().split("\n")[0]
    for cue in reversed(list(_CUE.finditer(text))[-5:]):
        answer = _picked(_clause(text, cue.end()), want, announced=True)
        if answer:
            return answer
    sentences = [part for part in _sentences(text) if part.strip(" *_.$")]
    if want == "other":
        return _picked(sentences[-1], want, announced=False) if sentences else ""
    for place, sentence in reversed(list(enumerate(sentences[-SENTENCES:], max(0, len(sentences) - SENTENCES)))):
        hedge = _HEDGE.match(sentence)
        if hedge is not None and place and want == "number" and _NUMBER.search(sentence):
            sentence = rf"{sentences[place - 1]} \text{{ or }} {sentence[hedge.end() :]}"
        answer = _picked(sentence, want, announced=False)
        if answer:
            return answer
    return ""


def _sentences(text: str) -> list[str]:
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        sentences.append(text[start : match.start()])
        start = match.end()
    return [*sentences, text[start:]]


def _clause(text: str, start: int) -> str:
    """From a cue to the end of its sentence; a sentence that goes on with "Or 18." belongs to it."""
    behind = _BEHIND_CUE.match(text, start)
    start = behind.end() if behind is not None else start
    displayed = _DISPLAYED.match(text, start)
    if displayed is not None:
        clause, end = displayed[1] or displayed[2], displayed.end()
    else:
        stop = _SENTENCE_END.search(text, start)
        end = stop.start() if stop is not None else len(text)
        clause = text[start:end]
    hedge = _HEDGE.match(text, end)
    if hedge is not None and clause:
        stop = _SENTENCE_END.search(text, hedge.end())
        return rf"{clause} \text{{ or }} {text[hedge.end() : stop.start() if stop is not None else len(text)]}"
    return clause


# ---------------------------------------------------------------- from a sentence to its answer


def _picked(clause: str, want: Want, *, announced: bool) -> str:
    """The part of a sentence that answers; "" where it holds none.

    Args:
        announced: it stands behind "the answer is", so that all of it is the answer if nothing less can be.
    """
    clause = clause.strip().strip("*_").strip()
    if not clause or len(clause) > LONGEST_SENTENCE:
        return ""
    if clause.endswith("!"):
        clause = clause[:-1].rstrip()  # "The answer is 5!" is glad, and "$5!$" a factorial
    if want == "choice":
        return _choice(clause, announced)
    form = read(clause)
    if _is_said(form) and (want == "other" or _is_worked_out(form)):
        return clause
    spans = [next(part for part in span.groups() if part) for span in _SPAN.finditer(clause)]
    if want == "other":
        if isinstance(form, Words):
            return clause.rstrip(".").strip()
        return spans[-1] if spans else _formula_at_end(clause)
    if _OR.search(clause) and len(_NUMBER.findall(clause)) > 1:
        return clause  # two answers are none, and so is "5 (or 6)"
    return _number(clause, spans, announced)


def _formula_at_end(clause: str) -> str:
    """Of "The vertex is (2, 3)" the point; the clause where it ends in no formula."""
    for word in list(re.finditer(r"\S+", clause))[-WORDS:]:
        part = clause[word.start() :].rstrip(".").strip("*_")
        if re.search(r"[\d=<>()\\^/+]", part) and _is_said(read(part)):
            return part
    return clause.rstrip(".").strip()


def _number(clause: str, spans: list[str], announced: bool) -> str:
    if announced:
        reason = _REASONS.search(clause)
        before = clause[: reason.start()].strip().strip("*_") if reason is not None else ""
        if before and _is_worked_out(read(before)):
            return before
        if isinstance(read(clause), Unread) and re.search(r"[^\W\d_]{2,}", clause) is None:
            return clause  # all of it is the answer: "6 7" is no 7
    numbers = list(_NUMBER.finditer(clause))
    if not numbers and not spans:
        return ""
    if (
        spans
        and _is_worked_out(read(spans[-1]))
        and (not numbers or clause.rfind(spans[-1]) + len(spans[-1]) >= numbers[-1].start())
    ):
        return spans[-1]
    words = list(re.finditer(r"\S+", clause))[-WORDS:]
    for word in words:
        before, part = clause[: word.start()], clause[word.start() :].strip("*_")
        if _OPERATION.search(before + (word.group()[0] if word.group()[0] in _SIGNS else "")):
            continue  # of "3 + 5" neither "5" nor "+ 5"
        if any(letter.isdigit() or letter == "\\" for letter in part) and _is_worked_out(read(part)):
            return clause if _DENIED.search(before) else part
    if not numbers:
        return ""
    last = numbers[-1]
    if _OPERATION.search(clause[: last.start()]):
        return ""  # "42 = 6 * 7" says no 7, and "3 + 5" repeats its question
    return clause if _DENIED.search(clause[: last.start()]) else last.group()


def _is_said(form: Form) -> bool:
    return not isinstance(form, Words | Unread)


def _is_worked_out(form: Form) -> bool:
    """Whether a form is read, and is no sum or product of plain numbers.

    A response that writes "3 + 5" has repeated its question and not answered it; in a box it means to answer.
    """
    inner = form.form if isinstance(form, Named) else form
    return _is_said(form) and not (isinstance(inner, Quantity) and _is_sum(inner.term))


def _is_sum(term: Term) -> bool:
    if term.op == "neg":
        return _is_sum(term.parts[0])
    if term.op not in ("add", "mul") or rational(term) is None:
        return False
    left, right = term.parts[0], term.parts[-1]
    if term.op == "add":  # a mixed number is one: 3 1/2
        return not (len(term.parts) == 2 and left.op == "num" and right.op == "div")
    # so are 6.02 x 10^23 and 5 million
    power = right.op == "pow" and right.parts[0] == number(10)
    return not (left.op == "num" and (power or (right.op == "num" and right.value in SCALES.values())))


def _choice(clause: str, announced: bool) -> str:
    form = read(clause)
    if isinstance(form, Labelled):
        return form.label if isinstance(form.form, Words | Unread) else clause
    labels = [match for match in (_LABEL.match(clause), _TOLD_LABEL.match(clause) if announced else None) if match]
    if not labels and not announced:
        labels = [match for pattern in _LABELS_INSIDE if (match := pattern.search(clause))]
    if not labels:
        return clause if announced and len(clause) < 80 and _is_said(form) else ""
    label = next(group for group in labels[0].groups() if group)
    joined = any(label in match.groups() for match in _JOINED_LABELS.finditer(clause))
    return clause if joined else label
