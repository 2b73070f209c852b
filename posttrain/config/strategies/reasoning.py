"""Strategies that ask the model for more than an answer: to think, to think longer, to check, to revise."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.strategies.base import (
    MOST_DRAWS,
    AnswerEquality,
    AnyScorer,
    StrategySettings,
)
from posttrain.config.strategies.demonstrations import Demonstrations
from posttrain.config.strategies.prompts import require_placeholders, require_text
from posttrain.config.values import Float, Int, is_changed, refuse, require_different_draws

STEP_BY_STEP = "Let's think step by step."
"""Kojima et al. 2022, arXiv:2205.11916, table 4."""
WAIT = "Wait"
"""Muennighoff et al. 2025, arXiv:2501.19393, section 3.1."""
FINAL_ANSWER = "Final Answer:"
"""The same: what follows a thought that was cut."""

STOP_PHRASE = "NOTHING TO CHANGE"
CRITIQUE = """Here is a question and an answer to it. Find what is wrong with the answer, and say how to mend it.

Question:

{question}

Answer:

{answer}"""
CONTENT = """

If the answer is right and complete, reply with {stop_phrase} and nothing else."""
REVISION = """Here is a question, an answer to it, and what a reader says of the answer.

Question:

{question}

Answer:

{answer}

Critique:

{critique}

Write the answer anew, mended where the critique is right. Reply with the answer alone."""
CHECK = """Here is a question and a proposed answer. Work through it, and say whether the answer is right.

Question:

{question}

Proposed answer:

{answer}

End your reply with one word: right, or wrong."""


class ChainOfThought(StrategySettings):
    """The model is made to reason before it answers, by a sentence or by examples that do."""

    kind: Literal["chain_of_thought"] = "chain_of_thought"
    """`chain_of_thought`: step by step, then the answer; several such, and a vote."""
    instruction: str | None = None
    """What asks for it; null: "Let's think step by step." without demonstrations, nothing with them."""
    place: Literal["user", "system"] = "user"
    """Where the instruction stands: behind the last user's turn, or in the system turn."""
    demonstrations: Demonstrations | None = None
    """Examples whose answers reason; null: none."""
    votes: Int = Field(default=1, ge=1, le=MOST_DRAWS)
    """Chains drawn; of several the answer that most of them come to."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        require_text(self.instruction, "instruction", "leave it out, or write `instruction: null`")
        require_different_draws(self, "votes")
        return self


class BudgetForcing(StrategySettings):
    """How long the model thinks is forced: no longer than a cap, no shorter than a number of "Wait"s makes it."""

    kind: Literal["budget_forcing"] = "budget_forcing"
    """`budget_forcing`: a thought is cut short, or made to go on."""
    max_thinking_tokens: Int | None = Field(default=256, ge=1)
    """The cap: a thought of so many tokens is ended, and the answer asked for; null: none."""
    waits: Int = Field(default=0, ge=0)
    """The floor: so many times the end of the thought is taken back, and `wait` put in its place."""
    min_thinking_tokens: Int | None = Field(default=None, ge=1)
    """Take the end back only of thoughts shorter than this; null: of all, `waits` times each."""
    wait: str = WAIT
    """What makes the thought go on."""
    final: str | None = FINAL_ANSWER
    """What follows a thought that was cut, so that the answer comes at once; null: nothing."""
    begin: str | None = None
    """What opens a thought, such as `<think>`; null: as the model's template has it."""
    end: str | None = None
    """What closes it."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for key in ("wait", "final", "begin", "end"):
            require_text(getattr(self, key), key, f"write a text, or leave `{key}` out")
        if (self.begin is None) != (self.end is None):
            raise refuse(
                "`begin` and `end` belong together",
                found=f"begin: {self.begin}, end: {self.end}",
                expected="both, or neither where the model's template has thoughts",
                remedy="write `begin: <think>` and `end: </think>`",
            )
        cap, longest = self.max_thinking_tokens, self.sampling.max_new_tokens
        if cap is None and not self.waits:
            raise refuse(
                "nothing is forced: there is neither a cap nor a floor",
                path=("waits",),
                found="max_thinking_tokens: null, waits: 0",
                expected="a cap, or one wait or more",
                remedy="write `max_thinking_tokens: 256`, or `waits: 2`",
            )
        if cap is not None and cap >= longest:
            raise refuse(
                "the thought may take all the tokens of the answer",
                path=("max_thinking_tokens",),
                found=f"max_thinking_tokens: {cap}, sampling.max_new_tokens: {longest}",
                expected="a cap below `sampling.max_new_tokens`, which counts the thought too",
                remedy=f"write `sampling: {{max_new_tokens: {2 * cap}}}`, or a smaller cap",
            )
        self._floor_is_below_the_cap()
        return self

    def _floor_is_below_the_cap(self) -> None:
        floor, cap = self.min_thinking_tokens, self.max_thinking_tokens
        if floor is None:
            return
        if not self.waits:
            raise refuse(
                "a floor needs waits, which lengthen the thought",
                path=("min_thinking_tokens",),
                found="waits: 0",
                expected="1 or more",
                remedy="write `waits: 4`",
            )
        if cap is not None and floor > cap:
            raise refuse(
                "the floor lies above the cap",
                path=("min_thinking_tokens",),
                found=f"min_thinking_tokens: {floor}, max_thinking_tokens: {cap}",
                expected=f"{cap} at most",
                remedy="raise the cap, or lower the floor",
            )


class RefiningStrategy(StrategySettings):
    """Answer, critique, revise, until the critique is content."""

    rounds: Int = Field(default=2, ge=1)
    """Most critiques, each with a revision after it."""
    stop_phrase: str | None = STOP_PHRASE
    """A critique with this text is content and ends the rounds; null: only the other rules do."""
    stop_unchanged: bool = True
    """Stop where a revision comes to the same answer as what it revises."""
    scorer: AnyScorer | None = None
    """Stop where a revision has no higher score than the best before it, and keep the best; null: keep the last."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one, for `stop_unchanged`."""
    critique_prompt: str | None = None
    """Asks for the critique: {question}, {answer}, and {stop_phrase} where there is one; null: a text of our own."""
    revise_prompt: str = REVISION
    """Asks for the revision: {question}, {answer}, {critique}."""

    @model_validator(mode="after")
    def _prompts_are_whole(self) -> Self:
        require_text(self.stop_phrase, "stop_phrase", "write a phrase, or `stop_phrase: null`")
        # A critic that is never told the phrase would not say it, and no round would end by it.
        phrase = () if self.stop_phrase is None else ("stop_phrase",)
        require_placeholders(self.critique_text, "critique_prompt", ("question", "answer", *phrase))
        require_placeholders(self.revise_prompt, "revise_prompt", ("question", "answer", "critique"))
        return self

    @property
    def critique_text(self) -> str:
        """The prompt that asks for a critique, as it is in force."""
        if self.critique_prompt is not None:
            return self.critique_prompt
        return CRITIQUE if self.stop_phrase is None else CRITIQUE + CONTENT


class SelfRefine(RefiningStrategy):
    """The model criticises its own answer and revises it."""

    kind: Literal["self_refine"] = "self_refine"
    """`self_refine`: answer, critique and revision, all by the model itself."""


class CritiqueBy(RefiningStrategy):
    """Another model criticises the answer, and the model revises it."""

    kind: Literal["critique_by"] = "critique_by"
    """`critique_by`: the critique comes from another model."""
    critic: str
    """Folder or name of the model that criticises; its tokens count as sampled ones."""
    rounds: Int = Field(default=1, ge=1)
    """Most critiques, each with a revision after it."""


class SelfVerification(StrategySettings):
    """Several answers, each checked several times by the model itself."""

    kind: Literal["self_verification"] = "self_verification"
    """`self_verification`: the answer that the model's own checks find right most often."""
    n: Int = Field(default=8, ge=1, le=MOST_DRAWS)
    """Answers drawn."""
    checks: Int = Field(default=4, ge=1, le=MOST_DRAWS)
    """Checks of each answer."""
    check_tokens: Int = Field(default=256, ge=1)
    """Longest check, in tokens."""
    choose: Literal["best", "vote"] = "best"
    """`best`: the answer with the highest share of checks that say right; `vote`: the answer that most of those come to
    that have at least `at_least`."""
    at_least: Float = Field(default=0.5, ge=0, le=1)
    """Of `vote`: the share of checks that an answer needs to vote."""
    check_prompt: str = CHECK
    """Asks for a check: {question}, {answer}. The last "right" or "wrong" of the reply is the verdict."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        require_different_draws(self, "n")
        require_different_draws(self, "checks")
        require_placeholders(self.check_prompt, "check_prompt", ("question", "answer"))
        if is_changed(self, "at_least") and self.choose == "best":
            raise refuse(
                "`at_least` has no part in `choose: best`",
                path=("at_least",),
                found="choose: best",
                expected="`choose: vote`",
                remedy="write `choose: vote`, or leave `at_least` out",
            )
        return self
