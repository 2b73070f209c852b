"""Kinds of suite: a file here says how a kind is loaded and asked, and one row of SUITES ties it to its settings.

    suite = load_suite(MatchSuite(kind="match", name="identity", prompts="heldout.jsonl", pattern="Pia"))
    suite.ask(asking)                # {"match": Score(0.94, ...), "length": Score(12.1, ...), ...}

What a recipe may write of a kind stands in `posttrain.config.suites`, which a reader of recipes loads without any of
this. A new kind is its record there, its file here, and its row below.
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.config.budget import BudgetSuite
from posttrain.config.suites import (
    JUDGES,
    ExactSuite,
    FunctionSuite,
    MatchSuite,
    NumberSuite,
    PassAtKSuite,
    PerplexitySuite,
    PromptSuite,
    SuiteSettings,
    WinRateSuite,
)
from posttrain.config.text_suites import (
    BleuSuite,
    ChrfSuite,
    F1Suite,
    LmEvalSuite,
    RetentionSuite,
    RougeSuite,
    TextPerplexitySuite,
)
from posttrain.data.questions import Question, questions
from posttrain.evaluate.asking import Suite
from posttrain.evaluate.questions import examples_of
from posttrain.evaluate.suites import (
    budget,
    exact,
    function,
    lm_eval,
    match,
    number,
    pass_at_k,
    perplexity,
    references,
    retention,
    text_perplexity,
    win_rate,
)
from posttrain.evaluate.suites.answers import GREEDY, AnswerSuite, questions_of
from posttrain.evaluate.suites.kind import SuiteKind
from posttrain.sampling import SamplingDistribution

__all__ = ["SUITES", "AnswerSuite", "Question", "SuiteKind", "load_suite", "questions"]

SUITES: Mapping[type[SuiteSettings], SuiteKind] = {
    MatchSuite: SuiteKind(match.load, items=questions_of),
    ExactSuite: SuiteKind(exact.load, items=questions_of),
    NumberSuite: SuiteKind(number.load, items=questions_of),
    PerplexitySuite: SuiteKind(perplexity.load),
    WinRateSuite: SuiteKind(win_rate.load, rejudge=win_rate.rejudge, beside=JUDGES),
    PassAtKSuite: SuiteKind(pass_at_k.load, items=pass_at_k.items, beside=("modules",)),
    BudgetSuite: SuiteKind(budget.load, beside=budget.BESIDE, content=budget.content),
    FunctionSuite: SuiteKind(function.load, function.METRICS, beside=("modules",), content=function.content),
    F1Suite: SuiteKind(references.load_f1, references.METRICS, items=questions_of),
    BleuSuite: SuiteKind(references.load_bleu, references.METRICS),
    ChrfSuite: SuiteKind(references.load_chrf, references.METRICS),
    RougeSuite: SuiteKind(references.load_rouge, references.METRICS, items=questions_of),
    TextPerplexitySuite: SuiteKind(
        text_perplexity.load, text_perplexity.METRICS, beside=("texts",), content=text_perplexity.content
    ),
    LmEvalSuite: SuiteKind(
        lm_eval.load, described=lm_eval.described, items=lm_eval.items, beside=("tasks",), content=lm_eval.content
    ),
    RetentionSuite: SuiteKind(retention.load, retention.METRICS, items=retention.items, content=retention.content),
}
"""What is done with each kind of a recipe's suites."""


def load_suite(settings: SuiteSettings) -> Suite:
    """A recipe's suite with its questions read.

    Raises:
        DataError: the file cannot be read, or a row lacks the answer that the suite's kind compares with.
    """
    if not isinstance(settings, PromptSuite):
        return SUITES[type(settings)].load(settings, [], GREEDY)
    sampling = SamplingDistribution(**settings.sampling.model_dump())
    return SUITES[type(settings)].load(settings, examples_of(settings), sampling)
