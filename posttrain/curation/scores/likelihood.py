"""Scores by what a language model finds likely: `ifd`, `perplexity` and `logprob`.

    loss(A|Q)   = -1/n sum_i log p(a_i | Q, a_1 .. a_i-1)
    ifd         = loss(A|Q) / loss(A)                           Li et al. 2023, arXiv:2308.12032, eq. 3
                  exp loss(A|Q) / exp loss(A)                   Li et al. 2024, arXiv:2402.00530, eq. 2 (`perplexity`)
    perplexity  = exp loss(A|Q), or exp loss(Q, A)
    logprob     = -loss(A|Q), or -n loss(A|Q)

Deviations from the papers:
1. The prompt is what the model's own template makes of it, and not Alpaca's; and A is the same ids in both losses. The
   token that ends the answer is in neither: it says nothing of what the answer says.
2. A row that is too long has no score. The papers cut it.
3. Without a beginning token (GPT-2) nothing predicts the first token of A alone. The papers leave it out of loss(A)
   and count it in loss(A|Q); here it is in neither, so that both are means over the same tokens.

A row's two passes, with its prompt and without, are trees of one batch. What was computed is found by the tree's
content: `perplexity` behind `ifd` with the same model computes nothing again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posttrain.config.model_scores import IFDScore, LanguageModelScore, LogProbScore, PerplexityScore
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.said import Said
from posttrain.curation.scores.asked import AskedModel, answered, asked_model, windows
from posttrain.curation.scores.scored import Scored
from posttrain.data.encode import Encoder
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate, packed
from posttrain.errors import NonFiniteError, RowError, TemplateError
from posttrain.models.tree.logprobs import Policy
from posttrain.types import Example, Feedback, Message, TokenTree

NO_ANSWER = "the row has no prompt with an answer"
TOO_SHORT = "the answer has too few tokens"
CERTAIN = "the model is certain of the answer alone, so that there is nothing to divide by"


@dataclass(frozen=True, slots=True)
class Losses:
    """Sum of the log-probs of some tokens, and how many: Losses(total=-12.3, tokens=8)."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        return -self.total / self.tokens


TreesOf = Callable[[Example, AskedModel], list[TokenTree] | str]
"""The trees whose losses a row's score is made of, or why there are none."""
Value = Callable[[Sequence[Losses]], float | str]
"""From the losses of a row's trees to its score, or why there is none."""


def ifd_score(settings: IFDScore, pool: Pool, tools: Tools) -> Scored:
    """Raises as `likelihood_score`."""

    def trees_of(example: Example, asked: AskedModel) -> list[TokenTree] | str:
        split = answer_ids(example, asked.encoder)
        if isinstance(split, str):
            return split
        prompt, answer = split
        before = alone_ids(settings, asked.encoder)
        skipped = 0 if before else 1
        if len(answer) <= skipped:
            return TOO_SHORT
        context = before or answer[:1]
        asked_for = [place >= skipped for place in range(len(answer))]
        return [
            make_tree(prompt, [(answer, asked_for)], example.row),
            make_tree(context, [(answer[skipped:], asked_for[skipped:])], example.row),
        ]

    def value(losses: Sequence[Losses]) -> float | str:
        given, alone = losses
        if settings.ratio == "perplexity":
            return math.exp(given.mean - alone.mean)
        return given.mean / alone.mean if alone.mean > 0 else CERTAIN

    return likelihood_score(settings, pool, tools, trees_of, value)


def perplexity_score(settings: PerplexityScore, pool: Pool, tools: Tools) -> Scored:
    """Raises as `likelihood_score`."""

    def trees_of(example: Example, asked: AskedModel) -> list[TokenTree] | str:
        if settings.of == "answer":
            return conditional(example, asked)
        # Of every kind of row, plain texts too: what training makes of it, read as one text.
        part = answered(example)
        trees = asked.encoder.example(example).trees if part is None else [whole_row(example, asked.encoder)]
        if not trees:
            return TOO_SHORT
        ids = trees[-1].prompt_ids.tolist() + (trees[-1].branches[0].ids.tolist() if trees[-1].branches else [])
        if len(ids) < 2:
            return TOO_SHORT
        return [make_tree(ids[:1], [(ids[1:], [True] * (len(ids) - 1))], example.row)]

    return likelihood_score(settings, pool, tools, trees_of, lambda losses: math.exp(min(700.0, losses[0].mean)))


def logprob_score(settings: LogProbScore, pool: Pool, tools: Tools) -> Scored:
    """Raises as `likelihood_score`."""

    def value(losses: Sequence[Losses]) -> float:
        return -losses[0].mean if settings.per_token else losses[0].total

    return likelihood_score(settings, pool, tools, conditional, value)


# ---------------------------------------------------------------- rows as trees


def whole_row(example: Example, encoder: Encoder) -> TokenTree:
    """The prompt and the best answer as a tree of one branch, its stop token included."""
    part = answered(example)
    assert part is not None  # the caller asked
    return encoder.feedback(Feedback(part.prompt, part.responses[0], True, example.row, part.tools))


def answer_ids(example: Example, encoder: Encoder) -> tuple[list[int], list[int]] | str:
    """(ids of the prompt, ids of the answer without its stop token), or why there are none."""
    if answered(example) is None:
        return NO_ANSWER
    tree = whole_row(example, encoder)
    branch = tree.branches[0]
    end = len(branch.ids)
    # From the last trained token back: what a template writes behind an answer trains nothing and belongs to no one.
    while end and (not branch.loss_mask[end - 1] or int(branch.ids[end - 1]) in encoder.stop_ids):
        end -= 1
    return (tree.prompt_ids.tolist(), branch.ids[:end].tolist()) if end else TOO_SHORT


def conditional(example: Example, asked: AskedModel) -> list[TokenTree] | str:
    split = answer_ids(example, asked.encoder)
    if isinstance(split, str):
        return split
    prompt, answer = split
    return [make_tree(prompt, [(answer, [True] * len(answer))], example.row)]


def alone_ids(settings: IFDScore, encoder: Encoder) -> list[int]:
    """What stands before an answer alone; empty where the tokenizer has no beginning token.

    Raises:
        TemplateError: the template refuses an empty question.
    """
    if settings.alone == "bos":
        return [] if encoder.bos_id is None else [encoder.bos_id]
    try:
        return encoder.prompt([Message("user", "")])
    except TemplateError as error:
        error.remedy = "write `alone: bos`"
        raise


# ---------------------------------------------------------------- the model


def likelihood_score(settings: LanguageModelScore, pool: Pool, tools: Tools, trees_of: TreesOf, value: Value) -> Scored:
    """A score of the losses of one or two trees a row, WINDOW rows at a time.

    Raises:
        ConfigError, ModelError: the model is not named, or cannot be loaded.
        EncodingError: a row cannot be encoded for this model; it names the row.
        NonFiniteError: the model's log-probs are not finite.
    """
    asked = asked_model(settings.model, settings.label, tools)
    longest = min(settings.max_length, asked.context or settings.max_length)
    policy = Policy(asked.model)
    score_R = np.full(len(pool.rows), np.nan)
    missing: dict[int, str] = {}
    with (
        Said(tools.cache, f"losses 1 {asked.fingerprint}") as said,
        tools.progress.phase(f"score {settings.label}", total=len(pool), unit="rows") as phase,
    ):
        for window in windows(pool):
            trees: dict[int, list[TokenTree]] = {}
            for row, example in window:
                found = _trees(trees_of, example, asked, longest)
                if isinstance(found, str):
                    missing[row] = found
                else:
                    trees[row] = found
            tokens = compute(policy, [tree for own in trees.values() for tree in own], said, settings.tokens_at_once)
            for row, own in trees.items():
                result = value([_read(said, tree) for tree in own])
                if isinstance(result, str):
                    missing[row] = result
                else:
                    score_R[row] = result
            phase.advance(len(window), tokens=tokens)
    return Scored(score_R, missing)


def _trees(trees_of: TreesOf, example: Example, asked: AskedModel, longest: int) -> list[TokenTree] | str:
    too_long = f"the row is longer than {longest:,} tokens"
    try:
        found = trees_of(example, asked)
    except RowError as error:  # nothing to train on, such as an answer of no text
        return f"the row cannot be scored: {error.reason}"
    if isinstance(found, str):
        return found
    return too_long if any(tree.num_tokens > longest for tree in found) else found


@torch.no_grad()
def compute(policy: Policy, trees: Sequence[TokenTree], said: Said, tokens_at_once: int) -> int:
    """Fill the store with the losses of these trees, each different one once. Returns the tokens that were computed.

    Raises:
        NonFiniteError: a log-prob is NaN or infinite; nothing of its batch is kept.
    """
    new = list({tree.key: tree for tree in trees if said.get(tree.key) is None}.values())
    for members in packed(new, tokens_at_once):
        batch = collate([new[index] for index in members])
        logprobs_N = policy(batch).logprobs_N.double().cpu()
        totals = torch.zeros(batch.num_branches, dtype=torch.float64)
        totals.index_add_(0, batch.branch_N, logprobs_N)
        counts = torch.bincount(batch.branch_N, minlength=batch.num_branches)
        if not bool(torch.isfinite(totals).all()):
            place = int(torch.nonzero(~torch.isfinite(totals))[0])
            raise NonFiniteError(
                "the model gives log-probs that are not finite",
                tensors=("logprobs",),
                rows=(str(new[members[place]].row),),
                remedy="check the model's weights (`posttrain models show NAME`)",
            )
        for place, index in enumerate(members):
            said.put(new[index].key, [float(totals[place]), float(counts[place])])
    return sum(tree.num_tokens for tree in new)


def _read(said: Said, tree: TokenTree) -> Losses:
    found = said.get(tree.key)
    assert found is not None  # computed with its window
    return Losses(float(found[0]), int(found[1]))
