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

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.config.strategies.base import SENTENCE, AnswerEquality, ScorerSettings, Spending
from posttrain.data.encode import Encoder
from posttrain.inference.answers import Equality
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Node, Solution, Spent, Stopped
from posttrain.rollout.engine import Completion, Engine, FinishReason, Request, SampledToken
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message, Task

SENTENCE_ENDS = (". ", "! ", "? ", ".\n", "!\n", "?\n", "\n\n")
"""What ends a sentence. The token that completes one of these may hold the beginning of the next sentence; it stays in
the step, for the ids that were sampled are what the next step continues."""

_ENDED = (FinishReason.STOP_TOKEN, FinishReason.EMPTY)

Watch = Callable[[SampledToken], bool]
"""Looks at a draw's tokens as they are sampled; True ends the draw after this token, which is kept and counted."""
ENDED_EARLY = "ended early"
"""The note of a draw that its watch has ended."""


class SpendingEnded(Exception):
    """Nothing may be spent any more; `Solving` turns it into a solution of what there is."""

    def __init__(self, reason: Stopped):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked, for all prompts alike: Asked(engine, encoder, scorers, seed=0)."""

    engine: Engine
    encoder: Encoder
    scorers: Scorers
    seed: int = 0
    folder: Path | None = None
    """Of the recipe: where functions are looked for that it names."""

    def equality(self, settings: AnswerEquality) -> Equality:
        """When two answers are one."""
        return Equality(settings, self.folder)


class Solving:
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
        self.asked = asked
        self.task = task
        self.sampling = replace(sampling, stop_ids=asked.encoder.stop_ids, seed=asked.seed)
        self.spend = spend
        self.label = label
        self.raw_logprobs = raw_logprobs
        self.nodes: list[Node] = []
        self.leading: Node | None = None
        """The best so far: what becomes the answer if the spending ends. A strategy sets it as it goes."""
        self._occurrence = occurrence
        self._enough: set[Request] = set()
        """Requests that their watch has ended: no sign of the time's end."""
        self._draws: Counter[tuple[int, ...]] = Counter()
        self._spent = Spent()
        self._calls = 0
        self._asked_as: dict[int, tuple[int, int]] = {}
        """Of each node by its identity: which call it came of, and which draw of it."""
        self._paying = asyncio.Lock()
        self._began: float | None = None

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
        assert after is None or after.open, "an answer that has ended cannot be continued"
        messages = self.task.prompt if after is None else after.messages
        prompt_ids = self.prompt_ids(messages) if after is None else after.prompt_ids
        before = () if after is None else after.path_ids
        return await self.continue_ids(
            messages,
            prompt_ids,
            before,
            count,
            parents=() if after is None else (after.number,),
            step=step,
            kind=kind or ("answer" if step is None else "step"),
            alternatives=alternatives,
            watch=watch,
            **sampling,
        )

    async def ask(
        self,
        messages: Sequence[Message],
        count: int = 1,
        *,
        kind: str,
        about: Sequence[Node] = (),
        **sampling: Any,
    ) -> list[Node]:
        """`count` answers to another conversation: a critique, a mark, a vote, a revision. Arguments as `sample`.

        Args:
            about: the nodes that it is about; its parents.
        """
        asked = tuple(messages)
        parents = tuple(node.number for node in about)
        return await self.continue_ids(asked, self.prompt_ids(asked), (), count, parents=parents, kind=kind, **sampling)

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
        watch: Callable[[], Watch] | None = None,
        **sampling: Any,
    ) -> list[Node]:
        """Draws after any ids, also ids that nobody sampled (a "Wait" that is put into an answer)."""
        assert count >= 1, "settings refuse fewer draws than 1"
        before = tuple(map(int, before_ids))
        whole = (*map(int, prompt_ids), *before)
        drawn, stops = self._drawn(len(before), step, sampling)
        # Numbers are taken before anything is awaited: which draw is which depends on the order of the calls alone.
        first = self._draws[whole]
        self._draws[whole] += count
        alternatives = 0 if alternatives is None and self.raw_logprobs else alternatives
        requests = [
            Request(whole, drawn, first + index, self._occurrence, alternatives=alternatives) for index in range(count)
        ]
        self._spent = self._spent + Spent(read=len(whole))
        made: list[Node] = []
        call = self._next_call()

        def keep(completion: Completion) -> None:
            prompt = whole[: len(whole) - len(before)]
            node = self._node(completion, kind, parents, messages, prompt, before, step)
            node.ended = completion.finish in _ENDED or completion.stopped_by in stops
            node.open = not node.ended and len(node.path_ids) < self.longest_answer(len(prompt), **sampling)
            made.append(self._noted(node, call, len(made)))

        await self._complete(requests, keep, watch)
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
        prompt = self.prompt_ids(self.task.prompt)
        drawn = replace(self.sampling, temperature=0.0, max_new_tokens=1)
        requests = [Request((*prompt, *answer), drawn, alternatives=alternatives) for answer in answers]
        self._spent = self._spent + Spent(read=sum(len(request.prompt) for request in requests))
        made: list[Node] = []
        call = self._next_call()

        def keep(completion: Completion) -> None:
            place = len(made)
            node = self._node(completion, kind, parents[place], self.task.prompt, prompt, answers[place], 1)
            made.append(self._noted(node, call, place))

        await self._complete(requests, keep)
        return made

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls

    def _noted(self, node: Node, call: int, place: int) -> Node:
        """The node as one of the tree, with what `_renumber` orders it by."""
        self._asked_as[id(node)] = (call, place)
        self.nodes.append(node)
        return node

    def compose(self, ids: Sequence[int], *, ended: bool, parents: tuple[int, ...] = (), kind: str = "answer") -> Node:
        """An answer of ids that were chosen elsewhere: a node that sampled nothing itself.

        Args:
            ended: whether the last id is a stop token.
        """
        finish = FinishReason.STOP_TOKEN if ended else FinishReason.LENGTH
        said = self.asked.encoder.tokens.decode(ids[:-1] if ended else ids)
        about = (len(self.nodes), kind, parents, self.task.prompt, self.prompt_ids(self.task.prompt))
        node = Node(*about, tuple(ids), (), (), finish, text="", answer=said, ended=ended)
        return self._noted(node, self._next_call(), 0)

    def _node(
        self,
        completion: Completion,
        kind: str,
        parents: tuple[int, ...],
        messages: tuple[Message, ...],
        prompt_ids: tuple[int, ...],
        before: tuple[int, ...],
        step: str | int | None,
    ) -> Node:
        decode = self.asked.encoder.tokens.decode
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

    async def _complete(
        self,
        requests: Sequence[Request],
        keep: Callable[[Completion], None],
        watch: Callable[[], Watch] | None = None,
    ) -> None:
        """Every completion goes to `keep`, in the order of the requests.

        Raises:
            SpendingEnded: before or after the last; what was drawn until then was kept.
        """
        self._began = time.monotonic() if self._began is None else self._began
        if self.spend.tokens is None:
            await self._wave(requests, keep, watch)
            return
        # One call after the other, and of a call as many draws at once as could all be paid: which draw gets the last
        # tokens must not depend on what else the engine does.
        async with self._paying:
            waiting = list(requests)
            while waiting:
                left = self.spend.tokens - self._spent.sampled
                if left < 1:
                    raise SpendingEnded(Stopped.TOKENS)
                longest = waiting[0].sampling.max_new_tokens
                paid = max(1, left // longest)
                wave, waiting = waiting[:paid], waiting[paid:]
                if longest > left:
                    shorter = replace(wave[0].sampling, max_new_tokens=left)
                    wave = [replace(wave[0], sampling=shorter)]
                await self._wave(wave, keep, watch)
                if longest > left and not self.nodes[-1].ended and len(self.nodes[-1].ids) == left:
                    self.nodes[-1].note = "the spending ended here"
                    raise SpendingEnded(Stopped.TOKENS)

    async def _wave(
        self, requests: Sequence[Request], keep: Callable[[Completion], None], watch: Callable[[], Watch] | None
    ) -> None:
        """Requests side by side; at the end of time they come back as they are, so that their tokens are counted."""
        engine, timer = self.asked.engine, None
        if watch is not None:
            requests = [self._watched(request, watch()) for request in requests]
        if self.spend.seconds is not None:
            assert self._began is not None
            left = self._began + self.spend.seconds - time.monotonic()
            if left <= 0:
                raise SpendingEnded(Stopped.SECONDS)

            def end() -> None:
                for request in requests:
                    engine.abort(request)

            timer = asyncio.get_running_loop().call_later(left, end)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(engine.generate_one(request)) for request in requests]
        except* Exception as errors:
            raise errors.exceptions[0] from None
        finally:
            if timer is not None:
                timer.cancel()
        out_of_time = False
        for request, task in zip(requests, tasks, strict=True):
            completion = task.result()
            self._spent = self._spent + Spent(sampled=len(completion.ids), requests=1)
            keep(completion)
            if completion.finish is FinishReason.ABORTED and request in self._enough:
                self.nodes[-1].note = ENDED_EARLY
            out_of_time |= completion.finish is FinishReason.ABORTED and request not in self._enough
        if out_of_time:
            raise SpendingEnded(Stopped.SECONDS)

    def _watched(self, request: Request, enough: Watch) -> Request:
        """The request with a watch that ends it."""

        def look(token: SampledToken) -> None:
            if enough(token):
                self._enough.add(watched)
                self.asked.engine.abort(watched)

        watched = replace(request, on_token=look)
        return watched

    # ------------------------------------------------------------ scoring

    async def score(self, nodes: Sequence[Node], scorer: ScorerSettings, *, partial: bool = False) -> list[float]:
        """A number per node, higher is better, written into its `scores` too; -inf where the scorer abstained.

        Args:
            partial: the answers are still being written, step by step.

        Raises:
            ConfigError: the scorer cannot judge what it gets.
        """
        return await self.asked.scorers.score(self, nodes, scorer, partial=partial)

    def count_scored(self, tokens: int) -> None:
        self._spent = self._spent + Spent(scored=tokens)

    # ------------------------------------------------------------ texts and ids

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self.asked.encoder.prompt(tuple(messages), self.task.tools))

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text that is put into an answer."""
        return tuple(self.asked.encoder.tokens.ids(text))

    # ------------------------------------------------------------ the end

    @property
    def spent(self) -> Spent:
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        return replace(self._spent, seconds=seconds)

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be sampled; None: no limit."""
        return None if self.spend.tokens is None else self.spend.tokens - self._spent.sampled

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
        return Solution(self.label, self.task, text, number, tuple(self.nodes), self.spent, stopped, facts)

    def _renumber(self) -> None:
        """Nodes in the order in which they were asked for. Calls that ran side by side ended in an order that depends
        on what else the engine did, and the same seed is to give the same tree."""
        ordered = sorted(self.nodes, key=lambda node: self._asked_as.get(id(node), (node.number, 0)))
        numbers = {node.number: number for number, node in enumerate(ordered)}
        for node in ordered:
            node.number, node.parents = numbers[node.number], tuple(numbers[parent] for parent in node.parents)
        self.nodes = ordered


def first_best(nodes: Sequence[Node], scores: Sequence[float]) -> Node:
    """The node of the highest score, of equal ones the earliest: ties must not depend on anything else."""
    best = max(range(len(nodes)), key=lambda index: (scores[index], -index))
    return nodes[best]
