"""Answers of a teacher as rows to imitate: every prompt is asked, every answer kept, or dropped for a written reason.

    with teacher_of(settings.teacher, journal=out / ASKED) as teacher:
        made = answer_prompts(tasks, teacher, settings, out, seed=0)
    made.rows, made.dropped, str(made)

    pt.distil("prompts.jsonl", {"url": "http://localhost:8000/v1", "model": "qwen2.5-72b"}, out="answers")

A question's seed depends on the run's seed, the prompt's content, how many equal prompts stand before it, and the
answer's number: a row that is added or moved changes no other question, and what is in the journal is found again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from re import Pattern
from typing import Any

from posttrain.arguments import checked_seed
from posttrain.auditing.fix import as_row, turns_of_row
from posttrain.auditing.language import STOP_WORDS, detect_language
from posttrain.auditing.marks import SCRIPTS
from posttrain.config.distil import Distil, DistilFilters
from posttrain.config.teacher import EndpointTeacher
from posttrain.data.origin import Origin, with_origin
from posttrain.data.questions import question
from posttrain.data.write import JsonlWriter
from posttrain.errors import ConfigError, EmptyDatasetError, unknown
from posttrain.inference.rows import WITHOUT, demonstration_of, unfit
from posttrain.inference.run import tasks_of
from posttrain.inference.scorers import Scorers, label_of
from posttrain.rewards.refusal import is_refusal
from posttrain.runs.records.logs import DroppedRow, YieldLine
from posttrain.runs.showing import Shown, showing
from posttrain.synthesis.cost import Meter
from posttrain.synthesis.journal import ASKED, Journaled
from posttrain.synthesis.scoring import Written, score_texts
from posttrain.synthesis.teacher import UNASKED, Ask, Drawing, OnReply, Reply
from posttrain.synthesis.teachers import teacher_of
from posttrain.types import Demonstration, Message, Task

DATA = "data.jsonl"
LANGUAGES = {name.casefold(): name for name in ("same", *STOP_WORDS, *SCRIPTS)}
"""What `filters.language` may name: those that are told apart, Latin ones by their words and others by their script."""
AT_ONCE = 2048
"""Questions of one call: enough to keep any teacher busy, few enough to hold their answers."""

REASONS: Mapping[str, str] = {
    "failed": "the teacher gave no answer",
    UNASKED: "a limit of tokens or cost was spent before it was asked",
    "empty": "the teacher answered nothing",
    "cut": "the answer was cut by a limit, or nobody says that it ended",
    "refusal": "the teacher declines",
    "too_short": "it has fewer words than `least_words`",
    "too_long": "it has more words than `most_words`",
    "language": "it is in another language",
    "duplicate": "an answer that says the same was kept for this prompt",
    **{key: WITHOUT[key] for key in ("special_tokens", "bad_character", "low_score", "not_judged")},
}
"""Why an answer made no row."""


@dataclass(slots=True)
class Distilled:
    """What came of it: Distilled(rows=940, prompts=1000, answers=1000, dropped={"cut": 60}, ...)."""

    prompts: int
    rows: int = 0
    answers: int = 0
    """That were asked for."""
    without: int = 0
    """Prompts that gave no row; yields.jsonl says why."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Answers by reason, a key of REASONS."""
    spent: Meter = field(default_factory=Meter)
    limit: str | None = None
    """The limit that ended the asking, in words."""
    path: Path | None = None
    """The rows' file."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())
        parts = [f"{self.rows:,} rows of {self.answers:,} answers to {self.prompts:,} prompts"]
        parts += [f"dropped: {reasons}"] if reasons else []
        parts += [f"{self.without:,} prompts gave no row"] if self.without else []
        return "; ".join(parts)

    @property
    def figures(self) -> dict[str, Any]:
        """For stage.json, beside the counts that every stage has."""
        figures: dict[str, Any] = {"prompts_without_row": self.without}
        return figures if self.limit is None else {**figures, "stopped_by": self.limit}


def answer_prompts(
    tasks: Sequence[Task],
    teacher: Journaled,
    settings: Distil,
    folder: Path,
    *,
    seed: int = 0,
    scorers: Scorers | None = None,
    special: Pattern[str] | None = None,
    on_reply: OnReply | None = None,
) -> Distilled:
    """Ask everything, and write data.jsonl, dropped.jsonl and yields.jsonl into `folder`; rows in the prompts' order.

    Args:
        scorers: who carries out `settings.filters.scorer`; needed where there is one.
        special: what names a special token of the model that will train on the rows: answers with one make no row.
        on_reply: told of each answer, with its question's number.

    Raises:
        EmptyDatasetError: no row came out; the answers are in the teacher's journal all the same.
        EngineError, ConfigError: see `Teacher.ask`; what was answered by then is in the journal.
    """
    made = Distilled(len(tasks), spent=teacher.spent, path=folder / DATA)
    judging = _Judging(settings, scorers, special)
    per_call = max(1, AT_ONCE // settings.answers_per_prompt)
    seen: Counter[str] = Counter()
    with (
        JsonlWriter(folder / DATA) as rows,
        JsonlWriter(folder / DroppedRow.FILE) as dropped,
        JsonlWriter(folder / YieldLine.FILE) as yields,
    ):
        for start in range(0, len(tasks), per_call):
            some = tasks[start : start + per_call]
            questions = [asks_of(task, settings, seed, seen) for task in some]
            asks = [ask for own in questions for ask in own]
            replies = iter(teacher.ask(asks, None if on_reply is None else _numbered(on_reply, made.answers)))
            made.answers += len(asks)
            answered = [(task, [next(replies) for _ in own]) for task, own in zip(some, questions, strict=True)]
            for (task, _), own, judged in zip(answered, questions, judging.judge(answered), strict=True):
                for line in _rows_of(task, own, judged, teacher.name, settings):
                    rows.write(line)
                for reply, reason, _ in judged:
                    if reason is not None:
                        made.dropped[reason] += 1
                        dropped.write(_dropped_line(task, reply, reason))
                yields.write(_yield_line(task, judged).to_json())
                kept = sum(reason is None for _, reason, _ in judged)
                made.rows += kept
                made.without += not kept
        made.limit = teacher.spent.limit_reached if made.dropped[UNASKED] else None
        if not made.rows:
            raise _nothing_kept(tasks, made)
    return made


def _numbered(on_reply: OnReply, before: int) -> OnReply:
    """Told of the questions of one call by their number among all."""
    return lambda at, reply: on_reply(before + at, reply)


def asks_of(task: Task, settings: Distil, seed: int, seen: Counter[str]) -> list[Ask]:
    """The questions of one prompt.

    Args:
        seen: how many equal prompts stood before it; is counted up.
    """
    messages = _asked_of(task, settings)
    content = json.dumps([turns_of_row(messages), list(task.tools)], sort_keys=True, default=str)
    sampling = settings.sampling
    drawing = Drawing(sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.stop)
    asks = []
    for number in range(settings.answers_per_prompt):
        drawn_from = f"{seed} {seen[content]} {number} {content}".encode("utf-8", "surrogatepass")
        own = int.from_bytes(hashlib.blake2b(drawn_from, digest_size=8).digest(), "little") >> 1
        asks.append(Ask(messages, drawing, own, task.tools))
    seen[content] += 1
    return asks


def _asked_of(task: Task, settings: Distil) -> tuple[Message, ...]:
    """The prompt as the teacher gets it: a system message of its own wins over the stage's."""
    if settings.system is None or any(turn.role == "system" for turn in task.prompt):
        return task.prompt
    return (Message("system", settings.system), *task.prompt)


# ---------------------------------------------------------------- which answers make a row

Judged = tuple[Reply, str | None, float | None]
"""(the reply, why it makes no row, its score)"""


class _Judging:
    """The filters, in the order of their cost: texts first, the scorer only where all else holds."""

    def __init__(self, settings: Distil, scorers: Scorers | None, special: Pattern[str] | None):
        self.settings, self.filters, self.special = settings, settings.filters, special
        if settings.filters.scorer is not None:
            assert scorers is not None, "the filters name a scorer, and nobody carries it out"
            scorers.grader(settings.filters.scorer)  # one that cannot be made is refused before anything is asked
        self.scorers = scorers
        if (language := settings.filters.language) is not None and language.casefold() not in LANGUAGES:
            # A slip would drop every answer that is long enough to tell.
            raise unknown("language", language, LANGUAGES.values(), where="filters.language")
        # By the prompt's content: the same prompt in two rows is one prompt here too.
        self._kept: defaultdict[str, set[str]] = defaultdict(set)

    def judge(self, answered: Sequence[tuple[Task, Sequence[Reply]]]) -> list[list[Judged]]:
        """What becomes of the answers to each prompt; the scorer gets those to all of them at once."""
        reasons = [[self._reason(task, reply) for reply in replies] for task, replies in answered]
        scores = self._scores(answered, reasons)
        return [
            self._judge(task, replies, own, marks)
            for (task, replies), own, marks in zip(answered, reasons, scores, strict=True)
        ]

    def _judge(
        self, task: Task, replies: Sequence[Reply], reasons: list[str | None], scores: Sequence[float | None]
    ) -> list[Judged]:
        least = self.filters.least_score
        asked = question(task).text
        for place, reply in enumerate(replies):
            if reasons[place] is None and least is not None:
                score = scores[place]
                reasons[place] = "not_judged" if score is None else "low_score" if score < least else None
            if reasons[place] is None and self.filters.duplicates == "drop":
                same = " ".join(reply.text.split()) + json.dumps(list(reply.tool_calls), default=str, sort_keys=True)
                reasons[place] = "duplicate" if same in self._kept[asked] else None
                self._kept[asked].add(same)
        return list(zip(replies, reasons, scores, strict=True))

    def _scores(
        self, answered: Sequence[tuple[Task, Sequence[Reply]]], reasons: Sequence[Sequence[str | None]]
    ) -> list[list[float | None]]:
        """A number per answer; None of those that make no row anyway, which the scorer is not asked about."""
        scores: list[list[float | None]] = [[None] * len(replies) for _, replies in answered]
        if self.filters.scorer is None or self.scorers is None:
            return scores
        places = [[at for at, reason in enumerate(own) if reason is None] for own in reasons]
        asked = [
            (task, [Written(replies[at].text, replies[at].completion_tokens, replies[at].ended) for at in own])
            for (task, replies), own in zip(answered, places, strict=True)
        ]
        found = score_texts(self.scorers, self.filters.scorer, asked)
        for own, marks, scored in zip(places, found, scores, strict=True):
            for at, mark in zip(own, marks, strict=True):
                scored[at] = mark
        return scores

    def _reason(self, task: Task, reply: Reply) -> str | None:
        """By the reply alone."""
        filters = self.filters
        if reply.error is not None:
            return UNASKED if reply.error == UNASKED else "failed"
        if filters.ended and not reply.ended:
            return "cut"
        if not reply.text.strip() and not reply.tool_calls:
            return "empty"
        if filters.refusals == "drop" and ("refusal" in reply.details or is_refusal(reply.text)):
            return "refusal"
        return _length_reason(filters, reply) or self._language_reason(task, reply) or self._unfit(reply)

    def _unfit(self, reply: Reply) -> str | None:
        thoughts = reply.reasoning if self.settings.reasoning != "drop" else None
        return unfit(reply.text, self.special) or unfit(thoughts or "", self.special)

    def _language_reason(self, task: Task, reply: Reply) -> str | None:
        wanted = self.filters.language
        if wanted is None:
            return None
        if wanted == "same":
            wanted = detect_language(
                next((turn.content or "" for turn in task.prompt[::-1] if turn.role == "user"), "")
            )
        found = detect_language(reply.text)
        return "language" if wanted and found and found.casefold() != wanted.casefold() else None


def _length_reason(filters: DistilFilters, reply: Reply) -> str | None:
    words = len(reply.text.split())
    if filters.least_words is not None and words < filters.least_words:
        return "too_short"
    return "too_long" if filters.most_words is not None and words > filters.most_words else None


# ---------------------------------------------------------------- lines


def _rows_of(
    task: Task, asks: Sequence[Ask], judged: Sequence[Judged], model: str, settings: Distil
) -> Iterator[dict[str, Any]]:
    drawing = asks[0].drawing
    sampling: dict[str, Any] = {"temperature": drawing.temperature, "max_new_tokens": drawing.max_new_tokens}
    sampling |= {} if drawing.top_p == 1 else {"top_p": drawing.top_p}
    sampling |= {"stop": list(drawing.stop)} if drawing.stop else {}
    seeded = not isinstance(settings.teacher, EndpointTeacher) or settings.teacher.send_seed
    scorer = settings.filters.scorer
    for number, (ask, (reply, reason, score)) in enumerate(zip(asks, judged, strict=True), start=1):
        if reason is not None:
            continue
        details: dict[str, Any] = {} if len(asks) == 1 else {"attempt": number, "of": len(asks)}
        if ask.messages != task.prompt:
            details["system"] = settings.system
        origin = Origin(
            "distil",
            model=model,
            source=str(task.row),
            sampling=sampling,
            seed=ask.seed if seeded else None,
            scores={} if score is None or scorer is None else {label_of(scorer): score},
            details=details,
        )
        yield with_origin(as_row(demonstration(task, reply, settings)), origin)


def demonstration(task: Task, reply: Reply, settings: Distil) -> Demonstration:
    """The row that an answer makes: the prompt's own turns do not train, the teacher's does."""
    if settings.keep_system:
        task = replace(task, prompt=_asked_of(task, settings))
    whole = demonstration_of(task, reply.text)
    text: str | None = reply.text
    if settings.reasoning == "inside" and reply.reasoning:
        text = f"<think>\n{reply.reasoning}\n</think>\n\n{reply.text}"
    turn = Message(
        "assistant",
        # A turn of calls alone has no content: some templates write an empty one otherwise.
        text or (None if reply.tool_calls else text),
        tool_calls=reply.tool_calls,
        reasoning=reply.reasoning if settings.reasoning == "keep" else None,
    )
    return replace(whole, messages=(*whole.messages[:-1], turn))


def _dropped_line(task: Task, reply: Reply, reason: str) -> dict[str, Any]:
    said = f"{REASONS[reason]}: {reply.error}" if reason == "failed" else REASONS[reason]
    content = {"prompt": turns_of_row(task.prompt), "completion": reply.text}
    return DroppedRow(str(task.row), reason, said, content).to_json()


def _yield_line(task: Task, judged: Sequence[Judged]) -> YieldLine:
    scores = [score for _, _, score in judged if score is not None]
    skipped = Counter(reason for _, reason, _ in judged if reason is not None)
    return YieldLine(
        str(task.row),
        question(task).text,
        answers=len(judged),
        right=None,
        rows=len(judged) - skipped.total(),
        best=max(scores, default=None),
        skipped=dict(skipped),
    )


def _nothing_kept(tasks: Sequence[Task], made: Distilled) -> EmptyDatasetError:
    reasons = ", ".join(f"{count:,} answers: {REASONS[reason]}" for reason, count in made.dropped.most_common())
    return EmptyDatasetError(
        "no row came out: none of the answers could be kept",
        where=tasks[0].row.source if tasks else None,
        found=reasons or "no prompt",
        expected="at least one answer that ends by itself and passes the filters",
        remedy="raise `sampling.max_new_tokens`, loosen `filters`, or raise the teacher's limit; what was answered is "
        "kept and not asked again",
    )


# ---------------------------------------------------------------- from Python


def distil(
    prompts: Any,
    teacher: Any,
    *,
    out: str | Path,
    seed: int = 0,
    progress: Shown = None,
    **options: Any,
) -> Distilled:
    """A teacher's answers as rows: distil("prompts.jsonl", "smollm2-135m-instruct", out="answers").rows

    `out/data.jsonl` holds the rows, `dropped.jsonl` the answers that made none, `yields.jsonl` what each prompt gave,
    and `asked.jsonl` everything that was answered: the same call again asks only what is not there yet.

    Args:
        prompts: a text, a list of texts, conversations or tasks, or whatever `read` takes (a path, rows, a table).
        teacher: a model's name or folder, or what a recipe writes: {"url": ..., "model": ..., "key_env": ...}.
        seed: the same seed gives the same answers of a local teacher.
        progress: None shows it in a terminal and a notebook; False is silent.
        options: the other keys of a recipe's stage: answers_per_prompt, reasoning, system, sampling, filters, modules.

    Raises:
        ConfigError: an option is wrong, or the teacher refuses.
        EngineError: nobody answers; what was answered is kept.
        EmptyDatasetError: there is no prompt, or no row came out.
    """
    checked_seed(seed)
    settings = Distil(teacher=teacher, **options)
    if settings.data is not None:
        raise ConfigError("the prompts are the first argument", where="data", found="data=", remedy="leave `data` out")
    tasks = tasks_of(prompts)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    modules = None if settings.modules is None else Path(settings.modules)
    with (
        showing(progress) as shown,
        Scorers(modules) as scorers,
        teacher_of(settings.teacher, journal=folder / ASKED, say=shown.say) as answering,
        shown.phase("distil", total=len(tasks) * settings.answers_per_prompt, unit="answers") as phase,
    ):

        def show(_: int, reply: Reply) -> None:
            phase.advance(1, tokens=reply.completion_tokens, note=answering.spent.note())

        made = answer_prompts(tasks, answering, settings, folder, seed=seed, scorers=scorers, on_reply=show)
    return made
