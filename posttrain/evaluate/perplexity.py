"""Perplexity of fixed answers: the start model's own, kept at the start and scored again by every later model.

The answers are kept as ids beside the start's evaluation, in `baseline/<suite>.jsonl`. Later models score exactly
these ids; text that is encoded again could become others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from posttrain.data.encode import Encoder
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate, pack
from posttrain.data.write import write_jsonl
from posttrain.errors import ResumeError, RowError
from posttrain.evaluate.suites import PerplexitySuite, Question
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.engine import Engine, FinishReason
from posttrain.runs.files import read_jsonl
from posttrain.runs.records.evaluation import BaselineAnswer, BaselineKey
from posttrain.sampling import SamplingDistribution
from posttrain.types import Feedback, Message, RowRef, TokenTree

TOKENS_PER_MICROBATCH = 4_096
LARGEST_LOGITS = 1 << 26
"""Elements of the logits that the padded path may hold at a time."""


@dataclass(frozen=True, slots=True)
class FixedAnswer:
    """FixedAnswer(prompt_ids=(1, 70), ids=(52, 2), finish="stop_token")"""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    finish: str


def own_answers(
    suite: PerplexitySuite, engine: Engine, sampling: SamplingDistribution, encoder: Encoder
) -> list[FixedAnswer]:
    """What the model answers now."""
    prompts = [tuple(encoder.prompt(one.prompt, one.tools)) for one in suite.questions]
    groups = engine.generate(prompts, sampling)
    return [
        FixedAnswer(prompt, group[0].ids, str(group[0].finish)) for prompt, group in zip(prompts, groups, strict=True)
    ]


def given_answers(suite: PerplexitySuite, encoder: Encoder) -> list[FixedAnswer]:
    """The rows' answers.

    Raises:
        RowError: a row without an answer.
    """
    trees = [_given(one, encoder) for one in suite.questions]
    return [
        FixedAnswer(tuple(tree.prompt_ids.tolist()), tuple(tree.branches[0].ids.tolist()), str(FinishReason.STOP_TOKEN))
        for tree in trees
    ]


class Scorer:
    """How likely a model finds fixed answers.

    It scores by token trees where they are proven on these answers to give what each row alone gives.
    """

    def __init__(self, model: nn.Module):
        self._policy = Policy(model)
        self._vocabulary = int(self._policy.causal_lm.config.get_text_config().vocab_size)

    def nats(self, answers: Sequence[FixedAnswer]) -> list[float]:
        """Minus the log-prob of each answer's ids, in the answers' order."""
        trees = [_tree(answer) for answer in answers]
        place = {id(tree): index for index, tree in enumerate(trees)}
        found = [0.0] * len(trees)
        with torch.no_grad():
            if trees:
                self._policy.prove(trees, gradient=False)
            for micro in pack(trees, self._budget()):
                batch = collate(micro)
                logprobs_N = self._policy(batch).logprobs_N.double().cpu()
                totals = torch.zeros(len(micro), dtype=torch.float64).index_add_(0, batch.branch_N, logprobs_N)
                for tree, total in zip(micro, totals.tolist(), strict=True):
                    found[place[id(tree)]] = -total
        return found

    def _budget(self) -> int:
        if self._policy.path == "tree":
            return TOKENS_PER_MICROBATCH
        return max(1, min(TOKENS_PER_MICROBATCH, LARGEST_LOGITS // self._vocabulary))


# ---------------------------------------------------------------- the kept file


def baseline_path(folder: Path, suite: str) -> Path:
    return folder / "baseline" / f"{suite}.jsonl"


def questions_key(suite: PerplexitySuite, encoder: Encoder) -> str:
    """Names what the kept answers answer: the questions, the tokenizer's ids for them, and how answers are drawn.

    The template is no part of it: a stage that is trained under another one is scored on the start's very ids.
    """
    prompts = [[repr(message) for message in one.prompt] for one in suite.questions]
    ids = [encoder.tokens.ids(one.text) for one in suite.questions]
    drawn = {**asdict(suite.sampling), "stop_ids": None}
    wanted = [one.answer for one in suite.questions] if suite.answers == "given" else []
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
    return [FixedAnswer(one.prompt_ids, one.ids, one.finish) for one in kept], [one.nats for one in kept]


# ---------------------------------------------------------------- trees


def _tree(answer: FixedAnswer) -> TokenTree:
    return make_tree(answer.prompt_ids, [(answer.ids, [True] * len(answer.ids))], RowRef("evaluation", 1))


def _given(one: Question, encoder: Encoder) -> TokenTree:
    if one.answer is None:
        raise RowError(
            "the row has no answer to score",
            reason="bad_label",
            where=one.row,
            expected="an answer",
            remedy="add the answer, or score the start model's own",
        )
    return encoder.feedback(Feedback(one.prompt, (Message("assistant", one.answer),), True, one.row, one.tools))
