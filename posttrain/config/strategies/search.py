"""Strategies that build an answer step by step, score what there is of it, and go on from the best."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.strategies.base import (
    MOST_DRAWS,
    AnswerEquality,
    AnyScorer,
    StepStrategy,
    StrategySettings,
)
from posttrain.config.values import Float, Int, Settings, refuse, require_different_draws


class ScoredSteps(StepStrategy):
    """What the strategies have that score answers while they are written, and choose among the finished ones."""

    n: Int = Field(default=16, ge=1, le=MOST_DRAWS)
    """Answers that are written at the same time."""
    scorer: AnyScorer
    """Who judges an answer so far: a process reward model, the model's log-prob, or the model itself."""
    choose: Literal["best", "weighted"] = "best"
    """Among the finished answers: `best`, the highest score; `weighted`, the answer whose equals have the highest sum
    of scores."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one, for `weighted`."""

    @property
    def judging(self) -> Literal["steps", "either", "answers"]:
        return "steps"

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        require_different_draws(self, "n")
        return self


class WideSteps(ScoredSteps):
    """Several continuations of each answer that is kept, of which some are kept in turn."""

    width: Int = Field(default=4, ge=1, le=MOST_DRAWS)
    """Continuations of each answer that is kept; `n` divided by it are kept."""
    lookahead: Int = Field(default=0, ge=0)
    """A step is judged by the score of the answer so many greedy steps later, which are then thrown away; 0: by its
    own. Their tokens count."""

    @model_validator(mode="after")
    def _width_divides(self) -> Self:
        if self.n % self.width:
            near = max(1, round(self.n / self.width)) * self.width
            raise refuse(
                "`n` answers cannot be shared out among continuations of equal number",
                path=("width",),
                found=f"n: {self.n}, width: {self.width}",
                expected="a `width` that divides `n`",
                remedy=f"write `n: {near}`, or another `width`",
            )
        return self


class PRMBeam(WideSteps):
    """Beam search over steps: of all continuations those with the highest scores go on."""

    kind: Literal["prm_beam"] = "prm_beam"
    """`prm_beam`: n answers, of which the n / width best are continued `width` times each, step by step."""


class DVTS(WideSteps):
    """Diverse verifier tree search: several greedy searches that do not look at each other."""

    kind: Literal["dvts"] = "dvts"
    """`dvts`: n / width separate answers; of `width` continuations each keeps its best, step by step."""


class ParticleFilter(ScoredSteps):
    """Particle filtering: answers go on as often as a draw by their scores says, so that bad ones have a chance."""

    kind: Literal["particle_filter"] = "particle_filter"
    """`particle_filter`: n answers; after each step n of them are drawn again, with weights softmax(score)."""
    resampling: Literal["systematic", "multinomial"] = "systematic"
    """`systematic`: one random offset for all draws, so that counts are off from their expectation by less than 1;
    `multinomial`: n draws that know nothing of each other, as in the paper."""
    weight_temperature: Float = Field(default=1.0, gt=0)
    """Scores are divided by it before the softmax: above 1 the weights are nearer to each other."""


_JUDGED: Mapping[str, Literal["steps", "either", "answers"]] = {
    "auto": "either",
    "state": "steps",
    "rollout": "answers",
}
"""What the scorer of a tree search is asked about, by where values come from."""


class MCTS(StepStrategy):
    """Monte Carlo tree search over steps."""

    kind: Literal["mcts"] = "mcts"
    """`mcts`: a tree of steps that grows where value and curiosity (UCT) say."""
    simulations: Int = Field(default=32, ge=1, le=MOST_DRAWS)
    """Times that the tree is walked down and a value is carried up."""
    width: Int = Field(default=4, ge=1, le=MOST_DRAWS)
    """Next steps that are drawn when a state is expanded."""
    widening: Float = Field(default=0.0, ge=0, lt=1)
    """A state that was visited N times has room for width * N^widening next steps (progressive widening); 0: always
    `width`."""
    exploration: Float = Field(default=1.4, ge=0)
    """c of UCT: Q + c sqrt(ln N of the parent / N); values are from 0 to 1."""
    max_depth: Int = Field(default=16, ge=1)
    """Most steps from the prompt to a state; from the last one the answer is written to its end."""
    scorer: AnyScorer
    """Who says what a state is worth."""
    value: Literal["auto", "state", "rollout"] = "auto"
    """`state`: the score of the answer so far; `rollout`: the score of answers that are written to the end from there;
    `auto`: `state` with a scorer of steps, else `rollout`."""
    rollouts: Int = Field(default=1, ge=1, le=MOST_DRAWS)
    """Answers that are written to the end from a state, whose mean score is its value."""
    choose: Literal["completed", "visited", "value"] = "completed"
    """`completed`: the finished answer with the highest value; `visited`: down the tree by most visits; `value`: down
    the tree by highest mean value. The last two write the answer to its end where the tree has none."""

    @property
    def judging(self) -> Literal["steps", "either", "answers"]:
        return _JUDGED[self.value]

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        require_different_draws(self, "width")
        if self.value != "state":
            require_different_draws(self, "rollouts")
        return self


# ---------------------------------------------------------------- thoughts


class ThoughtPrompts(Settings):
    """What the model is asked about thoughts; a name in braces is replaced, other braces stay."""

    NEEDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "propose": ("question", "thoughts", "count"),
        "words": ("question", "thoughts"),
        "marks": ("question", "thoughts"),
        "vote": ("question", "choices"),
        "final": ("question", "thoughts"),
        "merge": ("question", "choices"),
        "refine": ("question", "thoughts"),
    }

    propose: str = """Question:

{question}

Steps so far:

{thoughts}

List {count} different possible next steps, each on a line of its own that begins with its number. Do not finish the \
answer yet."""
    """Asks for several next steps in one reply."""
    words: str = """Question:

{question}

Steps so far:

{thoughts}

Can these steps lead to the right answer? Reply with one word: sure, maybe or impossible."""
    """Asks for a value in words."""
    marks: str = """Question:

{question}

Steps so far:

{thoughts}

How good are these steps? Reply with a mark from 1 (wrong or useless) to 10 (right and complete), and nothing else."""
    """Asks for a value as a mark."""
    vote: str = """Question:

{question}

Several ways to go on:

{choices}

Which of them is the best? Reply with its number alone."""
    """Asks for a choice among numbered states."""
    final: str = """Question:

{question}

Steps that were worked out:

{thoughts}

Give the final answer to the question."""
    """Asks for the answer when the steps are there."""
    merge: str = """Question:

{question}

Several attempts:

{choices}

Write one answer to the question that joins what is right in them and leaves out what is wrong."""
    """Asks for one answer out of several (graph of thoughts)."""
    refine: str = """Question:

{question}

An attempt:

{thoughts}

Find what is wrong in it or could be better, and write the improved answer."""
    """Asks for a better answer (graph of thoughts)."""

    @model_validator(mode="after")
    def _places_are_named(self) -> Self:
        for name, text in self.model_dump().items():
            needed = self.NEEDS[name]
            missing = [place for place in needed if f"{{{place}}}" not in text]
            # A name that nothing replaces would be shown to the model as it stands.
            others = [place for place in re.findall(r"\{([a-z_]+)\}", text) if place not in needed]
            if missing or others:
                wrong = missing or others
                raise refuse(
                    f"the prompt `{name}` "
                    + ("lacks a place that is filled in" if missing else "names a place that nothing fills in"),
                    path=(name,),
                    found=", ".join(f"{{{place}}}" for place in wrong),
                    expected=", ".join(f"{{{place}}}" for place in needed),
                    remedy=f"{'add' if missing else 'take out'} {{{wrong[0]}}}",
                )
        return self


class TreeOfThoughts(StepStrategy):
    """Tree of thoughts: the model proposes next steps, judges where they lead, and goes on from the best."""

    kind: Literal["tree_of_thoughts"] = "tree_of_thoughts"
    """`tree_of_thoughts`: next steps by the model, judged by the model, searched in breadth or in depth."""
    thoughts: Literal["sampled", "proposed"] = "sampled"
    """`sampled`: each next step is a draw that goes on with the answer; `proposed`: one reply lists them all."""
    k: Int = Field(default=5, ge=1, le=MOST_DRAWS)
    """Next steps of each state."""
    judge: Literal["valued", "voted", "scorer"] = "valued"
    """`valued`: the model judges each state by itself; `voted`: it chooses among all of them; `scorer`: judged by
    `scorer`."""
    scale: Literal["words", "marks"] = "words"
    """Of `valued`: the words sure (20), maybe (1) and impossible (0.001), or marks from 1 to 10."""
    judgements: Int = Field(default=3, ge=1, le=MOST_DRAWS)
    """Values of each state, whose mean counts, or votes on each set of states."""
    judge_tokens: Int = Field(default=64, ge=1)
    """Longest reply of a judgement."""
    scorer: AnyScorer | None = None
    """For `judge: scorer`."""
    search: Literal["breadth", "depth"] = "breadth"
    """`breadth`: after each step the `keep` best states; `depth`: the best next step first, and back where no state is
    worth going on."""
    keep: Int = Field(default=5, ge=1, le=MOST_DRAWS)
    """b: states that are kept after each step, in breadth."""
    floor: Float | None = None
    """In depth: states of a lower value are not gone on with; null: 1 in words, 5 in marks, 0 of a scorer."""
    max_states: Int = Field(default=50, ge=1)
    """In depth: once so many states were judged, no further one is gone on with."""
    max_steps: Int = Field(default=4, ge=1)
    """Steps from the question to a last state."""
    prompts: ThoughtPrompts = ThoughtPrompts()
    """What the model is asked."""

    @property
    def judging(self) -> Literal["steps", "either", "answers"]:
        return "steps" if self.judge == "scorer" else "answers"

    @model_validator(mode="after")
    def _judge_is_there(self) -> Self:
        if (self.judge == "scorer") == (self.scorer is None):
            raise refuse(
                "`judge: scorer` and `scorer` belong together",
                path=("judge",),
                found=f"judge: {self.judge}, scorer: {'none' if self.scorer is None else 'given'}",
                expected="both or neither",
                remedy="write `judge: scorer, scorer: FOLDER`, or leave `scorer` out",
            )
        if self.search == "depth" and self.judge == "voted":
            raise refuse(
                "a search in depth compares a state with a floor, and votes give a state no value of its own",
                path=("judge",),
                found="search: depth, judge: voted",
                remedy="write `judge: valued`, or `search: breadth`",
            )
        if self.judge == "scorer" and self.thoughts == "proposed":
            raise refuse(
                "a scorer judges an answer so far, and proposed steps are notes beside the answer",
                path=("thoughts",),
                found="judge: scorer, thoughts: proposed",
                remedy="write `thoughts: sampled`, or `judge: valued`",
            )
        if self.thoughts == "sampled":
            require_different_draws(self, "k")
        if self.judge != "scorer":
            require_different_draws(self, "judgements")
        return self


class GraphOfThoughts(StrategySettings):
    """Graph of thoughts: answers are made, judged, merged into one and refined, for several rounds."""

    kind: Literal["graph_of_thoughts"] = "graph_of_thoughts"
    """`graph_of_thoughts`: generate, score, keep the best, merge them, refine what came of it."""
    generate: Int = Field(default=5, ge=1, le=MOST_DRAWS)
    """Answers to begin with."""
    keep: Int = Field(default=3, ge=2, le=MOST_DRAWS)
    """Best thoughts that are merged in each round."""
    merges: Int = Field(default=2, ge=1, le=MOST_DRAWS)
    """Draws of the merged answer in each round."""
    refine: Int = Field(default=1, ge=0)
    """Times that the best thought of a round is refined, one after the other."""
    rounds: Int = Field(default=1, ge=1)
    """Rounds of merging and refining."""
    scorer: AnyScorer
    """Who says how good a thought is; `self`: the model's own mark."""
    prompts: ThoughtPrompts = ThoughtPrompts()
    """What the model is asked."""

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        require_different_draws(self, "generate")
        require_different_draws(self, "merges")
        if self.keep > self.generate:
            raise refuse(
                "more thoughts are kept than there are",
                path=("keep",),
                found=f"generate: {self.generate}, keep: {self.keep}",
                expected="a `keep` of at most `generate`",
                remedy=f"write `keep: {self.generate}`",
            )
        return self
