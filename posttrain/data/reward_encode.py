"""The encoder of reward models: the one encoder, with conditions in the prompt and steps in the mask.

Training of reward models, their evaluation and their scoring of rollouts all encode here.

Ids are those of training, rollout and evaluation. Three things are a reward model's own:

- a response goes on to where the template ends a conversation (ChatML writes a line break after the stop token), since
  that is where every other tool scores it;
- a system message may be set for rows that have none, and a condition (an attribute or a group) is stated in it;
- where a response is scored step by step, only the ends of steps stay in the mask: the outputs there are the scores of
  the steps. Steps that a row lists are found by their place, and those with a label train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from posttrain.data.encode import EncodedExample, Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.step_ends import step_ends
from posttrain.data.tree_key import make_tree
from posttrain.errors import RowError
from posttrain.losses.reward_rule import RewardRule
from posttrain.types import Branch, Comparison, Example, Message, RowRef, StepwiseFeedback, TokenTree

Needs = Literal["order", "margins", "scores", "steps"]


@dataclass(frozen=True, slots=True)
class Rated:
    """Responses to one prompt that are to be scored, in this order: Rated(prompt, (answer,), row).

    A response is the messages after the prompt and begins with the assistant.
    """

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    row: RowRef
    tools: tuple[Any, ...] = ()
    steps: tuple[str, ...] = ()
    """The steps of the one response, where the row lists them; it is then made of them."""


class RewardEncoder(Encoder):
    """RewardEncoder(tokenizer, EncoderSettings(), RewardRule(pooling="steps", step_mark="\\n")).

    Args:
        needs: what every row must bring: the order of its responses, a margin, a score for each, or labels of its
            steps.
    """

    def __init__(
        self,
        tokenizer: Any,
        settings: EncoderSettings | None = None,
        rule: RewardRule | None = None,
        needs: Needs = "order",
    ):
        super().__init__(tokenizer, settings)
        self.rule = rule or RewardRule()
        self.needs: Needs = needs
        self.given = self.settings
        """The settings as they were asked for; a response leaves room for the tail."""
        self.tail: list[int] = self._probe_tail()
        if self.settings.max_length is not None and self.tail:
            self.settings = replace(self.settings, max_length=max(2, self.settings.max_length - len(self.tail)))
        rule_text = repr(
            (
                self.rule.files,
                self.rule.conditions,
                self.rule.condition_text,
                self.rule.step_mark,
                self.rule.system,
                needs,
                # What is kept on disk is found by this text: rows that were encoded by an earlier rule have another.
                *(("empty ends are no steps",) if self.rule.pooling == "steps" else ()),
            )
        )
        self.version = hashlib.sha256(f"{self.version} {rule_text}".encode()).hexdigest()
        self._pieces: dict[int, str] = {}

    def __reduce__(self) -> tuple[type[Encoder], tuple[Any, ...]]:
        return RewardEncoder, (self.tokenizer, self.given, self.rule, self.needs)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that a complete response can end with."""
        return frozenset(self.tail[-1:]) or self.stop_ids

    def example(self, row: Example) -> EncodedExample:
        """A training row.

        Raises:
            RowError: it lacks the margin or the scores that the objective needs.
            DataError: no output or condition has its file.
            EncodingError: it cannot be encoded faithfully.
        """
        if isinstance(row, StepwiseFeedback):
            return self._stepwise(row)
        if isinstance(row, Comparison):
            self._check_annotations(row)
        condition = self.rule.names[self.rule.file_of(row.row)] if self.rule.files else None
        if isinstance(row, Comparison):
            row = replace(row, prompt=self.with_system(row.prompt, condition))
        encoded = super().example(row)
        return replace(encoded, trees=tuple(self._with_step_mask(self._with_tail(tree)) for tree in encoded.trees))

    def rated(self, rated: Rated, condition: str | None = None) -> list[TokenTree]:
        """What is scored of a row: one tree with a branch per response, or a tree per response (`whole_row`).

        Raises:
            RowError: a response is too long; EncodingError: the row cannot be encoded faithfully.
        """
        rated = replace(rated, prompt=self.with_system(rated.prompt, condition))
        if rated.steps:
            rated = replace(rated, responses=((self._answer_of(rated.steps),),))
        if self.rule.whole_row:
            return [self._whole_row(rated, response) for response in rated.responses]
        # As a comparison, whose responses share one prompt: which of them is called better does not matter to a score.
        order = tuple(range(len(rated.responses)))
        row = Comparison(rated.prompt, rated.responses, 0, rated.row, ranking=order, tools=rated.tools)
        encoded = super().example(row)
        if not encoded.trees:
            dropped = encoded.dropped[0]
            if dropped.reason == "identical_responses":
                # A comparison of equal responses trains nothing, but each of them has its score.
                alone = [replace(rated, responses=(response,)) for response in rated.responses]
                return [tree for one in alone for tree in self.rated(one, condition)]
            raise RowError(
                f"the row cannot be scored: {dropped.message}",
                reason=dropped.reason,
                where=rated.row,
                expected="a prompt and a response that fit the model together",
                remedy="shorten it, or leave the row out",
            )
        if rated.steps and self.rule.pooling == "steps":
            return [
                self._at_steps(self._with_tail(tree), rated.steps, (1.0,) * len(rated.steps)) for tree in encoded.trees
            ]
        return [self._with_step_mask(self._with_tail(tree)) for tree in encoded.trees]

    def with_system(self, prompt: tuple[Message, ...], condition: str | None) -> tuple[Message, ...]:
        """The prompt with its own system message or the rule's, to which the condition is appended."""
        has_system = bool(prompt) and prompt[0].role == "system"
        texts = [str(prompt[0].content) if has_system else self.rule.system]
        if self.rule.conditions and condition is not None:
            texts.append(self.rule.condition_text.replace("{name}", condition))
        system = "\n\n".join(text for text in texts if text)
        turns = prompt[1:] if has_system else prompt
        return (Message("system", system), *turns) if system else prompt

    def _whole_row(self, rated: Rated, response: tuple[Message, ...]) -> TokenTree:
        """The rendered conversation as one row, scored at its last token."""
        messages = [self.template.plain(message) for message in (*rated.prompt, *response)]
        text = self.template.render(messages, rated.tools)
        self._drafter.check_shown((*rated.prompt, *response), rated.tools, text)
        ids = np.asarray(self.tokens.ids(text), np.int32)
        limit = self.settings.max_length
        if limit is not None and len(ids) > limit:
            raise RowError(
                f"the row cannot be scored: {len(ids):,} tokens, and the model reads {limit:,}",
                reason="too_long",
                where=rated.row,
                remedy="shorten it, or leave the row out",
            )
        prompt_ids = np.asarray(self.prompt(rated.prompt, rated.tools), np.int32)
        # Shared only if the whole conversation begins with the prompt's ids; else one branch holds everything. Either
        # way the model reads the same ids.
        begins = len(prompt_ids) < len(ids) and np.array_equal(ids[: len(prompt_ids)], prompt_ids)
        shared = len(prompt_ids) if begins else 0
        mask = np.zeros(len(ids) - shared, np.bool_)
        mask[-1] = True
        return TokenTree(ids[:shared], (Branch(ids[shared:], mask),), "", rated.row)

    # ------------------------------------------------------------ ends

    def _probe_tail(self) -> list[int]:
        """What the template writes after the stop token of the last turn."""
        prompt, answer = (Message("user", "x"),), (Message("assistant", "y"),)
        encoded = super().example(Comparison(prompt, (answer,), 0, RowRef("probe", 1)))
        if not encoded.trees:  # `max_length` is too small for the probe; rows will say so
            return []
        ids = [*encoded.trees[0].prompt_ids.tolist(), *encoded.trees[0].branches[0].ids.tolist()]
        whole = self.tokens.ids(self.template.render([self.template.plain(m) for m in (*prompt, *answer)]))
        return whole[len(ids) :] if whole[: len(ids)] == ids else []

    def _with_tail(self, tree: TokenTree) -> TokenTree:
        """The tree with the tail after each response that ends with a stop token; one that was cut has no end."""
        if not self.tail:
            return tree

        def extended(branch: Branch) -> Branch:
            # A response that was cut before its end must not look finished: its score is taken where it stops.
            if int(branch.ids[-1]) not in self.stop_ids or not branch.loss_mask[-1]:
                return branch
            ids = np.concatenate([branch.ids, np.asarray(self.tail, np.int32)])
            return Branch(ids, np.concatenate([branch.loss_mask, np.ones(len(self.tail), np.bool_)]))

        return replace(tree, branches=tuple(extended(branch) for branch in tree.branches))

    # ------------------------------------------------------------ steps

    def _stepwise(self, row: StepwiseFeedback) -> EncodedExample:
        """Stepwise feedback: the ends of the steps that have a label train."""
        assert self.rule.pooling == "steps", "the recipe asks for `head: steps`"
        comparison = Comparison(
            self.with_system(row.prompt, None),
            ((self._answer_of(row.steps),),),
            0,
            row.row,
            ranking=(0,),
            tools=row.tools,
        )
        encoded = super().example(comparison)
        cut = bool(encoded.truncated)
        trees = [self._at_steps(self._with_tail(tree), row.steps, row.labels, cut=cut) for tree in encoded.trees]
        mark_in_step = any(self.rule.step_mark in step for step in row.steps)
        findings = (*encoded.findings, "mark_in_step") if mark_in_step else encoded.findings
        return replace(encoded, trees=tuple(trees), findings=findings)

    def _answer_of(self, steps: Sequence[str]) -> Message:
        return Message("assistant", (self.rule.step_mark or "\n").join(steps))

    def _at_steps(
        self, tree: TokenTree, steps: Sequence[str], labels: Sequence[float | None], *, cut: bool = False
    ) -> TokenTree:
        """The same ids, with only the ends of the labelled steps in the mask."""
        (branch,) = tree.branches
        places = np.flatnonzero(branch.loss_mask)
        ends = step_ends(self.tokens.decode, branch.ids[places].tolist(), steps, self.rule.step_mark, cut=cut)
        labelled = [(places[end], label) for end, label in zip(ends, labels, strict=False) if label is not None]
        if not labelled:
            raise RowError(
                "no step with a label is left of the row",
                reason="nothing_to_train",
                where=tree.row,
                expected="a labelled step within `max_length`",
                remedy="raise max_length, or remove the row",
            )
        mask = np.zeros_like(branch.loss_mask)
        mask[[place for place, _ in labelled]] = True
        step_labels = [label for _, label in labelled]
        return make_tree(
            tree.prompt_ids.tolist(), [(branch.ids.tolist(), mask.tolist())], tree.row, step_labels=step_labels
        )

    def _with_step_mask(self, tree: TokenTree) -> TokenTree:
        if self.rule.pooling != "steps":
            return tree
        return replace(tree, branches=tuple(self._step_ends(branch) for branch in tree.branches))

    def _step_ends(self, branch: Branch) -> Branch:
        """The same ids, with only the tokens in the mask that end a step: those with the mark's last character in
        them, and the last token of the response."""
        places = np.flatnonzero(branch.loss_mask)
        pieces = [self._piece(int(branch.ids[place])) for place in places]
        text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
        mask = np.zeros_like(branch.loss_mask)
        # Found in the text and not among the ids: a tokenizer may write the mark together with what stands before it.
        mark, at = self.rule.step_mark, -1
        while (at := text.find(mark, at + 1)) >= 0:
            mask[places[int(np.searchsorted(ends, at + len(mark) - 1, side="right"))]] = True
        mask[places[-1:]] = True
        words = [
            "" if int(branch.ids[place]) in self.stop_ids else piece
            for place, piece in zip(places, pieces, strict=True)
        ]
        return Branch(branch.ids, _without_repeats(mask, places, words))

    def _piece(self, number: int) -> str:
        if number not in self._pieces:
            self._pieces[number] = self.tokens.decode([number])
        return self._pieces[number]

    def _check_annotations(self, row: Comparison) -> None:
        missing = (self.needs == "scores" and row.scores is None) or (self.needs == "margins" and row.margin is None)
        if missing:
            what = "a score for each response" if self.needs == "scores" else "a margin"
            raise RowError(
                f"the objective needs {what}, and the row has none",
                reason=f"no_{self.needs}",
                where=row.row,
                expected=what,
                remedy="add it to the rows, or use an objective that needs only their order (bradley_terry)",
            )


def _without_repeats(mask: np.ndarray, places: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """Drops the ends of empty steps: those with only white space, or a stop token, since the end before them.

    So a response that ends with the mark has the scores that it had while it was written, and none for a step that is
    not there. One end always stays.
    """
    ends = [index for index, place in enumerate(places) if mask[place]]
    start, kept = 0, 0
    for index, following in zip(ends, [*ends[1:], None], strict=True):
        if "".join(words[start : index + 1]).strip() or (following is None and not kept):
            start, kept = index + 1, kept + 1
        else:
            mask[places[index]] = False
    return mask
