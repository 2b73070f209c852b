"""What a strategy works with: draws, scores and counts of one prompt.

    async def best_of_n(solving: Solving, settings: BestOfN) -> Solution:
        answers = await solving.sample(settings.n)
        scores = await solving.score(answers, settings.scorer)
        best = first_best(answers, scores)
        return solving.solution(best)

All randomness is the engine's: a draw depends on the seed, the ids before it and how many draws these ids have had.
So a strategy that asks in a fixed order is repeated by its seed, whatever else the engine does meanwhile.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from posttrain.config.strategies.base import SENTENCE, ScorerSettings, Spending, StrategySampling
from posttrain.inference.asked import Asked
from posttrain.inference.drawing import Drawing, SpendingEnded, Watch
from posttrain.inference.solution import Node, Solution, Spent, Stopped
from posttrain.rollout.engine import Completion, FinishReason, Request
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message, Task

__all__ = ["SENTENCE_ENDS", "Asked", "Solving", "SpendingEnded", "Watch", "first_best"]

SENTENCE_ENDS = (". ", "! ", "? ", ".\n", "!\n", "?\n", "\n\n")
"""What ends a sentence. The token that completes one of these may hold the beginning of the next sentence; it stays in
the step, for the ids that were sampled are what the next step continues."""

_ENDED = (FinishReason.STOP_TOKEN, FinishReason.EMPTY)


@dataclass(frozen=True, slots=True)
class _Continued:
    """What draws go on from: the conversation, its ids, and the answer's ids so far."""

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    before_ids: tuple[int, ...]
    parents: tuple[int, ...]


class Solving(Drawing):
    """One prompt that is being solved.

    Args:
        task: its messages are the prompt. A strategy must not look at `task.answer`; verifiers do.
        sampling: how tokens are drawn where a call says nothing else; stop ids and seed are set here.
        occurrence: how many equal prompts stand before this one, so that they get draws of their own.
        raw_logprobs: every draw brings the log-probs at temperature 1 of its tokens, for a scorer that needs them.
    """

    def __init__(
        self,
        asked: Asked,
        task: Task,
        sampling: SamplingDistribution,
        spend: Spending,
        label: str,
        *,
        occurrence: int = 0,
        raw_logprobs: bool = False,
    ):
        super().__init__(spend)
        self.asked = asked
        self.task = task
        self.sampling = replace(sampling, stop_ids=asked.encoder.stop_ids, seed=asked.seed)
        self.label = label
        self.raw_logprobs = raw_logprobs
        self.prompt = task.prompt
        """The conversation that answers begin after: the task's, and what a strategy put before or into it. Scorers see
        the task's own."""
        self.facts: dict[str, float] = {}
        """What the solution will say of the whole, whichever strategy ends it."""
        self.notes: list[str] = []
        """The same in words."""
        self.leading: Node | None = None
        """The best so far: what becomes the answer if the spending ends. A strategy sets it as it goes."""
        self._occurrence = occurrence
        self._draws: Counter[tuple[int, ...]] = Counter()

    # ------------------------------------------------------------ drawing

    async def sample(
        self,
        count: int = 1,
        *,
        after: Node | None = None,
        step: str | int | None = None,
        kind: str | None = None,
        alternatives: int | None = None,
        watch: Callable[[], Watch] | None = None,
        **sampling: Any,
    ) -> list[Node]:
        """`count` draws that go on with the answer after `after`, or begin one.

        Args:
            after: the node that is continued, whose answer must not have ended; None: from the prompt on.
            step: end each draw where a step ends: a separator, "sentence", or a number of tokens. None: to the end.
            kind: of the nodes; `answer` without `step`, else `step`.
            alternatives: also the raw log-probs of the k likeliest tokens.
            watch: makes what looks at one draw's tokens, and may end it; its node is then neither ended nor whole.
            sampling: fields of `SamplingDistribution` that differ here, such as `temperature=0.0`.

        Raises:
            SpendingEnded: nothing may be spent any more.
        """
        how = {"step": step, "kind": kind, "alternatives": alternatives, "watch": watch, **sampling}
        (made,) = await self.sample_each([after], count, **how)
        return made

    async def ask(
        self,
        messages: Sequence[Message],
        count: int = 1,
        *,
        kind: str,
        about: Sequence[Node] = (),
        by: Asked | None = None,
        **sampling: Any,
    ) -> list[Node]:
        """`count` answers to another conversation: a critique, a mark, a vote, a revision. Arguments as `sample`.

        Args:
            about: the nodes that it is about; its parents.
            by: another model that is asked, without the task's tools; its tokens are counted like those of the first.
        """
        asked = tuple(messages)
        parents = tuple(node.number for node in about)
        ids = self.prompt_ids(asked) if by is None else tuple(by.encoder.prompt(asked))
        return await self.continue_ids(asked, ids, (), count, parents=parents, kind=kind, by=by, **sampling)

    async def sample_each(
        self, after: Sequence[Node | None], count: int | Sequence[int] = 1, *, kind: str | None = None, **how: Any
    ) -> list[list[Node]]:
        """`sample` after each of several nodes, all draws side by side: a list of `count` nodes for each (or of its own
        count).

        Calls that run side by side would number their nodes in the order in which they come back; here the order is
        that of `after`.
        """
        kind = kind or ("answer" if how.get("step") is None else "step")
        return await self._continue_each([self._after(node) for node in after], count, kind=kind, **how)

    async def ask_each(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Node]]],
        count: int = 1,
        *,
        kind: str,
        **sampling: Any,
    ) -> list[list[Node]]:
        """`ask` with several conversations, each with the nodes that it is about, side by side: as `sample_each`."""
        asked = []
        for messages, about in conversations:
            parents = tuple(node.number for node in about)
            asked.append(_Continued(tuple(messages), self.prompt_ids(messages), (), parents))
        return await self._continue_each(asked, count, kind=kind, **sampling)

    def part(self, of: Node, text: str, *, kind: str, answer: str = "") -> Node:
        """A node for a piece of what another node says, such as one proposal in a list: it has no tokens of its own,
        so that they are not counted twice."""
        node = of.part(len(self.nodes), kind, text, answer)
        self._keep(node, (self._call(), 0))
        return node

    def stream(self, purpose: str) -> np.random.Generator:
        """Random numbers that are no draws of tokens: they depend on the seed, the prompt and the purpose alone."""
        content = f"{self.asked.seed} {self._occurrence} {purpose} {list(self.prompt_ids(self.prompt))}"
        digest = hashlib.blake2b(content.encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def _after(self, node: Node | None) -> _Continued:
        if node is None:
            return _Continued(self.prompt, self.prompt_ids(self.prompt), (), ())
        assert node.open, "an answer that has ended cannot be continued"
        return _Continued(node.messages, node.prompt_ids, node.path_ids, (node.number,))

    async def continue_ids(
        self,
        messages: tuple[Message, ...],
        prompt_ids: Sequence[int],
        before_ids: Sequence[int],
        count: int,
        *,
        parents: tuple[int, ...],
        kind: str,
        step: str | int | None = None,
        alternatives: int | None = None,
        by: Asked | None = None,
        watch: Callable[[], Watch] | None = None,
        **sampling: Any,
    ) -> list[Node]:
        """Draws after any ids, also ids that nobody sampled (a "Wait" that is put into an answer)."""
        before = tuple(map(int, before_ids))
        one = _Continued(messages, tuple(map(int, prompt_ids)), before, parents)
        how = {"step": step, "alternatives": alternatives, "by": by, "watch": watch, **sampling}
        (made,) = await self._continue_each([one], count, kind=kind, **how)
        return made

    async def _continue_each(
        self,
        continued: Sequence[_Continued],
        count: int | Sequence[int],
        *,
        kind: str,
        step: str | int | None = None,
        alternatives: int | None = None,
        by: Asked | None = None,
        watch: Callable[[], Watch] | None = None,
        **sampling: Any,
    ) -> list[list[Node]]:
        counts = [count] * len(continued) if isinstance(count, int) else list(count)
        assert min(counts, default=1) >= 1, "settings refuse fewer draws than 1"
        alternatives = 0 if alternatives is None and self.raw_logprobs else alternatives
        by = by or self.asked
        if by is not self.asked:
            sampling = {"stop_ids": by.encoder.stop_ids, **sampling}
        decode = by.encoder.tokens.decode
        requests: list[Request] = []
        read = 0
        for one, times in zip(continued, counts, strict=True):
            whole = (*one.prompt_ids, *one.before_ids)
            drawn, stops = self._drawn(len(one.before_ids), step, sampling)
            # Numbers are taken before anything is awaited: which draw is which depends on the order of the calls alone.
            first = self._draws[whole]
            self._draws[whole] += times
            requests += [
                Request(whole, drawn, first + index, self._occurrence, alternatives=alternatives)
                for index in range(times)
            ]
            read += len(whole)
        self._spent = self._spent + Spent(read=read)
        made: list[list[Node]] = [[] for _ in continued]
        call, at = self._call(), 0
        # `_complete` gives completions in the order of the requests.
        places = iter([place for place, times in enumerate(counts) for _ in range(times)])

        def keep(completion: Completion, request: Request) -> None:
            nonlocal at
            place = next(places)
            one = continued[place]
            node = self._node(completion, kind, one.parents, one.messages, one.prompt_ids, one.before_ids, step, decode)
            node.ended = completion.finish in _ENDED or completion.stopped_by in stops
            # Cut before its own limit: the model has no further position.
            at_end = completion.finish is FinishReason.LENGTH and len(node.ids) < request.sampling.max_new_tokens
            longest = self.longest_answer(len(one.prompt_ids), **sampling)
            node.open = not node.ended and not at_end and len(node.path_ids) < longest
            self._keep(node, (call, at))
            at += 1
            made[place].append(node)

        await self._complete(requests, keep, by.engine, watch)
        return made

    async def expand(
        self, answers: Sequence[tuple[int, ...]], alternatives: int, *, parents: Sequence[tuple[int, ...]], kind: str
    ) -> list[Node]:
        """The likeliest next token after each of several beginnings of an answer, side by side, and the raw log-probs
        of the k likeliest beside it: one sampled token each. For strategies that choose the tokens themselves.

        Args:
            answers: the ids that stand so far, of each beginning.
            parents: of each node.

        Raises:
            SpendingEnded: nothing may be spent any more.
        """
        prompt, decode = self.prompt_ids(self.prompt), self.asked.encoder.tokens.decode
        drawn = replace(self.sampling, temperature=0.0, max_new_tokens=1)
        requests = [Request((*prompt, *answer), drawn, alternatives=alternatives) for answer in answers]
        self._spent = self._spent + Spent(read=sum(len(request.prompt) for request in requests))
        made: list[Node] = []
        call = self._call()

        def keep(completion: Completion, _: Request) -> None:
            place = len(made)
            node = self._node(completion, kind, parents[place], self.prompt, prompt, answers[place], 1, decode)
            self._keep(node, (call, place))
            made.append(node)

        await self._complete(requests, keep, self.asked.engine)
        return made

    def compose(self, ids: Sequence[int], *, ended: bool, parents: tuple[int, ...] = (), kind: str = "answer") -> Node:
        """An answer of ids that were chosen elsewhere: a node that sampled nothing itself.

        Args:
            ended: whether the last id is a stop token.
        """
        finish = FinishReason.STOP_TOKEN if ended else FinishReason.LENGTH
        said = self.asked.encoder.tokens.decode(ids[:-1] if ended else ids)
        about = (len(self.nodes), kind, parents, self.prompt, self.prompt_ids(self.prompt))
        node = Node(*about, tuple(ids), (), (), finish, text="", answer=said, ended=ended)
        self._keep(node, (self._call(), 0))
        return node

    def _node(
        self,
        completion: Completion,
        kind: str,
        parents: tuple[int, ...],
        messages: tuple[Message, ...],
        prompt_ids: tuple[int, ...],
        before: tuple[int, ...],
        step: str | int | None,
        decode: Callable[[Sequence[int]], str],
    ) -> Node:
        # A step keeps the separator, which belongs to what the next step continues.
        cut_before = completion.stopped_by if step is None else None

        def text(ids: tuple[int, ...], begins: int) -> str:
            whole = decode(ids)
            at = -1 if cut_before is None else whole.find(cut_before, begins)
            return whole if at < 0 else whole[:at]

        return Node(
            number=len(self.nodes),
            kind=kind,
            parents=parents,
            messages=messages,
            prompt_ids=prompt_ids,
            before_ids=before,
            ids=completion.ids,
            logprobs=completion.logprobs,
            finish=completion.finish,
            text=text(completion.answer_ids, 0),
            # Decoded as a whole: a character may be split between what stood before and what came now.
            # The string that ended it stands in what was drawn here; the same string before it ended nothing.
            answer=text((*before, *completion.answer_ids), len(decode(before)) if before else 0),
            alternatives=completion.alternatives,
        )

    def longest_answer(self, prompt_tokens: int, **sampling: Any) -> int:
        """Tokens that the whole answer may have: as asked, and no further than the model's last position."""
        asked = int(sampling.get("max_new_tokens", self.sampling.max_new_tokens))
        context = self.asked.engine.context_tokens
        return asked if context is None else min(asked, context - prompt_tokens)

    def _drawn(
        self, before: int, step: str | int | None, sampling: Mapping[str, Any]
    ) -> tuple[SamplingDistribution, tuple[str, ...]]:
        """The distribution of one call, with what ends a step, and the strings that end the answer itself."""
        drawn = replace(self.sampling, **sampling)
        stops = drawn.stop
        # `max_new_tokens` is of the whole answer: what stands already is taken from it.
        left = drawn.max_new_tokens - before
        assert left >= 1, "`open` is False of a node that has all the tokens that it may have"
        if isinstance(step, int):
            left = min(left, step)
        elif step is not None:
            drawn = replace(drawn, stop=(*stops, *(SENTENCE_ENDS if step == SENTENCE else (step,))))
        return replace(drawn, max_new_tokens=left), stops

    # ------------------------------------------------------------ scoring

    async def score(self, nodes: Sequence[Node], scorer: ScorerSettings, *, partial: bool = False) -> list[float]:
        """A number per node, higher is better, written into its `scores` too; -inf where the scorer abstained.

        Args:
            partial: the answers are still being written, step by step.

        Raises:
            ConfigError: the scorer cannot judge what it gets.
        """
        return await self.asked.scorers.score(self, nodes, scorer, partial=partial)

    # ------------------------------------------------------------ texts and ids

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self.asked.encoder.prompt(tuple(messages), self.task.tools))

    def draw_as(self, sampling: StrategySampling) -> None:
        """Draw by other settings from here on: those of a strategy inside another one."""
        drawn = SamplingDistribution(**sampling.model_dump())
        self.sampling = replace(drawn, stop_ids=self.asked.encoder.stop_ids, seed=self.asked.seed)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text that is put into an answer."""
        return tuple(self.asked.encoder.tokens.ids(text))

    # ------------------------------------------------------------ the end

    def solution(
        self,
        chosen: Node | None,
        stopped: Stopped = Stopped.DONE,
        *,
        answer: str | None = None,
        **facts: float,
    ) -> Solution:
        """What was found.

        Args:
            answer: the text, where it is not that of `chosen`.
        """
        text = answer if answer is not None else ("" if chosen is None else chosen.answer)
        self._renumber()
        number = None if chosen is None else chosen.number
        whole = {**self.facts, **facts}
        nodes, notes = tuple(self.nodes), tuple(self.notes)
        return Solution(self.label, self.task, text, number, nodes, self.spent, stopped, whole, notes)


def first_best(nodes: Sequence[Node], scores: Sequence[float]) -> Node:
    """The node of the highest score, of equal ones the earliest: ties must not depend on anything else."""
    best = max(range(len(nodes)), key=lambda index: (scores[index], -index))
    return nodes[best]
