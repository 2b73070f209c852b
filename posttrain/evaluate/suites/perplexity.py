"""`perplexity`: how surprised a model is by fixed answers, the start model's own.

    drift = Perplexity("unrelated", questions(read("unrelated.jsonl")))

The start's answers are kept as ids beside its evaluation, in `baseline/<suite>.jsonl`, and every later model scores
exactly these ids; text that is encoded again could become others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from posttrain.config.suite_settings import without_empty_stop
from posttrain.config.suites import PerplexitySuite
from posttrain.data.encode import Encoder
from posttrain.data.micro import alike, planned
from posttrain.data.questions import Question, questions
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate
from posttrain.data.write import write_jsonl
from posttrain.errors import ResumeError, RowError
from posttrain.evaluate.asking import Figures, SuiteRun, baseline_path
from posttrain.evaluate.figures import perplexity, perplexity_change
from posttrain.evaluate.suites.answers import GREEDY
from posttrain.models.tree.logprobs import Policy
from posttrain.parallel.calls import everywhere
from posttrain.parallel.world import world
from posttrain.rollout.engine import Engine, FinishReason
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import AnswerLine, BaselineAnswer, BaselineKey
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Feedback, Message, RowRef, TokenTree

TOKENS_PER_MICROBATCH = 4_096
LARGEST_LOGITS = 1 << 26
"""Elements of the logits that the padded path may hold at a time."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Answers whose likelihood is measured; a rise of the perplexity means that a model has drifted from them.

    own: the start model's greedy answers to the questions, sampled once and kept.
    given: the answers that the rows hold.
    """

    name: str
    questions: Sequence[Question]
    sampling: SamplingDistribution = GREEDY
    answers: Literal["own", "given"] = "own"

    def ask(self, asking: SuiteRun) -> Figures:
        encoder = asking.asked.encoder
        # The key goes into the kept file: answers to other prompts would make every later change meaningless.
        key = questions_key(self, encoder)
        scorer = FixedAnswerScorer(asking.asked.model)
        total = len(self.questions)
        with asking.progress.phase(f"{self.name}: perplexity", total=total, unit="answers") as phase:
            if asking.is_start:
                fixed = self._fixed(asking)
                # Scored, not taken from the engine, which rounds otherwise: the start must change by 0.
                before = nats = scorer.nats(fixed)
                keep_baseline(asking.baseline, self.name, key, fixed, nats)
            else:
                fixed, before = read_baseline(asking.baseline, self.name, key)
                nats = scorer.nats(fixed)
            lengths = [len(answer.ids) for answer in fixed]
            phase.advance(len(fixed), tokens=sum(lengths))
        records = [
            AnswerLine(
                prompt=question.text,
                completion=encoder.tokens.decode(answer.ids),
                answer=question.answer,
                score=answer_nats / len(answer.ids),
                tokens=len(answer.ids),
                finish=answer.finish,
            )
            for question, answer, answer_nats in zip(self.questions, fixed, nats, strict=True)
        ]
        write_jsonl(answers_path(asking.out, self.name), (record.to_json() for record in records))
        return {
            "perplexity": perplexity(nats, lengths),
            "perplexity_change": perplexity_change(nats, before, lengths),
        }

    def _fixed(self, asking: SuiteRun) -> list[FixedAnswer]:
        encoder = asking.asked.encoder
        if self.answers == "given":
            return given_answers(self, encoder)
        sampling = replace(self.sampling, stop_ids=encoder.stop_ids, seed=asking.asked.seed)
        return own_answers(self, asking.asked.engine, sampling, encoder)


def load(settings: PerplexitySuite, examples: list[Example], sampling: SamplingDistribution) -> Perplexity:
    return Perplexity(settings.name, questions(examples), sampling)


@dataclass(frozen=True, slots=True)
class FixedAnswer:
    """FixedAnswer(prompt_ids=(1, 70), ids=(52, 2), finish="stop_token")"""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    finish: str


def own_answers(
    suite: Perplexity, engine: Engine, sampling: SamplingDistribution, encoder: Encoder
) -> list[FixedAnswer]:
    """What the model answers now."""
    prompts = [tuple(encoder.prompt(question.prompt, question.tools)) for question in suite.questions]
    groups = engine.generate(prompts, sampling)
    return [
        FixedAnswer(prompt, group[0].ids, str(group[0].finish)) for prompt, group in zip(prompts, groups, strict=True)
    ]


def given_answers(suite: Perplexity, encoder: Encoder) -> list[FixedAnswer]:
    """The rows' answers.

    Raises:
        RowError: a row without an answer.
    """
    trees = [_given(question, encoder) for question in suite.questions]
    return [
        FixedAnswer(tuple(tree.prompt_ids.tolist()), tuple(tree.branches[0].ids.tolist()), str(FinishReason.STOP_TOKEN))
        for tree in trees
    ]


class FixedAnswerScorer:
    """How likely a model finds fixed answers.

    It scores by token trees where they are proven on these answers to give what each row alone gives. Of several ranks
    each scores its share; where rank 0 drives, the model has to be of its `own`.
    """

    def __init__(self, model: nn.Module):
        self._model = model

    def nats(self, answers: Sequence[FixedAnswer]) -> list[float]:
        """Minus the log-prob of each answer's ids, in the answers' order."""
        return everywhere(_nats, self._model, tuple(answers))


@torch.no_grad()
def _nats(model: nn.Module, answers: Sequence[FixedAnswer]) -> list[float]:
    """See `FixedAnswerScorer.nats`; every rank's part of it."""
    policy = Policy(model)
    trees = [_tree(answer) for answer in answers]
    nats: dict[int, float] = {}
    if trees:
        # The tree path is fast and this is where its figures are used, so it is proven on these very answers.
        policy.prove(trees, gradient=False)
    with alike(policy.is_sharded, "scoring fixed answers"):
        for micro in planned(trees, microbatch_tokens(policy), is_sharded=policy.is_sharded):
            batch = collate([trees[index] for index in micro.members])
            logprobs_N = policy(batch).logprobs_N.double().cpu()
            totals = torch.zeros(len(micro.members), dtype=torch.float64).index_add_(0, batch.branch_N, logprobs_N)
            nats |= {} if micro.idle else dict(zip(micro.members, (-totals).tolist(), strict=True))
    found: dict[int, float] = {}
    for own in world().gather(nats):
        found |= own
    return [found[index] for index in range(len(trees))]


def microbatch_tokens(policy: Policy) -> int:
    """Tokens of a micro-batch that is only scored."""
    if policy.path == "tree":
        return TOKENS_PER_MICROBATCH
    # The padded path holds logits of the whole vocabulary at every token; a budget in tokens does not bound them.
    vocabulary = int(policy.causal_lm.config.get_text_config().vocab_size)
    return max(1, min(TOKENS_PER_MICROBATCH, LARGEST_LOGITS // vocabulary))


# ---------------------------------------------------------------- the kept file


def questions_key(suite: Perplexity, encoder: Encoder) -> str:
    """Names what the kept answers answer: the questions, the tokenizer's ids for them, and how answers are drawn.

    The template is no part of it: a stage that is trained under another one is scored on the start's very ids.
    """
    prompts = [[repr(message) for message in question.prompt] for question in suite.questions]
    ids = [encoder.tokens.ids(question.text) for question in suite.questions]
    drawn = {**without_empty_stop(asdict(suite.sampling)), "stop_ids": None}
    wanted = [question.answer for question in suite.questions] if suite.answers == "given" else []
    content = json.dumps([suite.answers, prompts, ids, wanted, drawn], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def keep_baseline(folder: Path, suite: str, key: str, answers: Sequence[FixedAnswer], nats: Sequence[float]) -> None:
    lines = [
        BaselineAnswer(answer.prompt_ids, answer.ids, answer.finish, total).to_json()
        for answer, total in zip(answers, nats, strict=True)
    ]
    write_jsonl(baseline_path(folder, suite), [BaselineKey(key).to_json(), *lines])


def read_baseline(folder: Path, suite: str, key: str) -> tuple[list[FixedAnswer], list[float]]:
    """The start's answers, and minus their log-probs under the start.

    Raises:
        ResumeError: they are missing, or answer other questions.
    """
    path = baseline_path(folder, suite)
    records = read_jsonl(path)
    if not records:
        raise ResumeError(
            "the start model's answers are missing, so there is nothing to compare with",
            where=path,
            remedy="evaluate the start model first, or run with --fresh, which does",
        )
    head, *lines = records
    if BaselineKey.from_json(head).key != key:
        raise ResumeError(
            f"the start model was asked other questions than the suite `{suite}` asks now",
            where=path,
            found="other prompts, sampling or tokenizer",
            remedy="undo the change, or run with --fresh, so that the start is evaluated again",
        )
    kept = [BaselineAnswer.from_json(line) for line in lines]
    return [FixedAnswer(line.prompt_ids, line.ids, line.finish) for line in kept], [line.nats for line in kept]


# ---------------------------------------------------------------- trees


def _tree(answer: FixedAnswer) -> TokenTree:
    return make_tree(answer.prompt_ids, [(answer.ids, [True] * len(answer.ids))], RowRef("evaluation", 1))


def _given(question: Question, encoder: Encoder) -> TokenTree:
    if question.answer is None:
        raise RowError(
            "the row has no answer to score",
            reason="bad_label",
            where=question.row,
            expected="an answer",
            remedy="add the answer, or score the start model's own",
        )
    return encoder.feedback(
        Feedback(question.prompt, (Message("assistant", question.answer),), True, question.row, question.tools)
    )
