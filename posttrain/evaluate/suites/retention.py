"""`retention`: what training cost, in three figures that should not get worse.

text           40 texts that come with posttrain (prose, letters, code, tables): text_perplexity_change
instructions   60 prompts with constraints that a program checks (IFEval's, docs/rewards.md): the share of prompts whose
               constraints are all met
arithmetic     60 sums in words: the share whose last number is right

One file of answers holds all three parts; each line adds to the figures of its own part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.config.text_suites import RetentionSuite
from posttrain.data import read
from posttrain.data.questions import as_task, question
from posttrain.data.sources.shipped import shipped_file
from posttrain.data.write import write_jsonl
from posttrain.evaluate.asking import Figures, SuiteRun
from posttrain.evaluate.questions import require_gold
from posttrain.evaluate.suites.number import NEEDS, last_number_equals
from posttrain.evaluate.suites.text_perplexity import METRICS as TEXT_METRICS
from posttrain.evaluate.suites.text_perplexity import TextPerplexity
from posttrain.evaluate.texts import texts_of
from posttrain.intervals import mean
from posttrain.models.folders.manifest import sha256_of
from posttrain.rewards.instructions import instructions
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import AnswerLine, Direction, Meaning
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Task

TEXT, INSTRUCTIONS, ARITHMETIC = (
    "package://retention_text.jsonl",
    "package://retention_instructions.jsonl",
    "package://retention_arithmetic.jsonl",
)
LONGEST_ANSWER = 256
METRICS = {
    "text_perplexity_change": replace(TEXT_METRICS["text_perplexity_change"], title="general text: perplexity change"),
    "instructions": Meaning("instructions followed", "share", Direction.UP, primary=True),
    "arithmetic": Meaning("arithmetic", "share", Direction.UP, primary=True),
    **{name: TEXT_METRICS[name] for name in ("text_perplexity", "word_perplexity", "bits_per_byte")},
}


@dataclass(frozen=True, slots=True)
class Part:
    """Prompts of one part: Part("arithmetic", tasks, judge)."""

    metric: str
    tasks: Sequence[Task]
    judge: Callable[[str, Task], float]


@dataclass(frozen=True, slots=True)
class Retention:
    """Retention("retention", TextPerplexity("retention", texts), parts)"""

    name: str
    texts: TextPerplexity
    parts: tuple[Part, ...]
    sampling: SamplingDistribution

    def ask(self, asking: SuiteRun) -> Figures:
        scored = self.texts.scored(asking)
        lines, figures = scored.lines(), scored.figures()
        answered: Figures = {}
        for part in self.parts:
            groups, texts = asking.answers.to(f"{self.name}: {part.metric}", part.tasks, self.sampling, 1)
            scores = []
            for task, (completion,), (text,) in zip(part.tasks, groups, texts, strict=True):
                scores.append(part.judge(text, task))
                lines.append(
                    AnswerLine(
                        question(task).text,
                        text,
                        task.answer,
                        scores[-1],
                        len(completion.answer_ids),
                        str(completion.finish),
                        by_metric={part.metric: (scores[-1],)},
                    )
                )
            answered[part.metric] = mean([[score] for score in scores])
        write_jsonl(answers_path(asking.out, self.name), (line.to_json() for line in lines))
        first = "text_perplexity_change"
        return {first: figures.pop(first), **answered, **figures}


def _follows(answer: str, task: Task) -> float:
    """1 where the answer meets all constraints of its prompt (IFEval's prompt-level strict accuracy)."""
    met = instructions(task.prompt, answer, task, partial=False)
    assert met is not None, "every row of the package has constraints"
    return met


def _is_right(answer: str, task: Task) -> float:
    return last_number_equals(answer, question(task))


def load(settings: RetentionSuite, _: list[Example], sampling: SamplingDistribution) -> Retention:
    texts = texts_of([*read(TEXT, limit=settings.limit)])
    asked = [
        [as_task(example) for example in read(source, limit=settings.limit)] for source in (INSTRUCTIONS, ARITHMETIC)
    ]
    require_gold([question(task) for task in asked[1]], last_number_equals, NEEDS)
    parts = (Part("instructions", asked[0], _follows), Part("arithmetic", asked[1], _is_right))
    answers = replace(sampling, max_new_tokens=LONGEST_ANSWER)
    return Retention(settings.name, TextPerplexity(settings.name, texts), parts, answers)


def items(suite: Retention) -> dict[str, int]:
    """How many prompts each share is a mean of."""
    return {part.metric: len(part.tasks) for part in suite.parts}


def content(_: RetentionSuite) -> str:
    """The rows that come with posttrain: a later version may have others."""
    return "".join(sha256_of(Path(shipped_file(source))) for source in (TEXT, INSTRUCTIONS, ARITHMETIC))
