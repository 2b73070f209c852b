"""What one step samples: prompts, completions, rewards, and the trees that train on them.

    rollout = Rollout(groups, step=3, version=3)
    fill(rollout, "old_logprobs", lambda batch: policy(batch).logprobs_N, tokens_per_microbatch)
    trees = rollout.groups[0].trees()     # the prompt once, a branch per completion, columns on every token

Ids are exactly what was sampled, a stop token included where it was sampled and none where it was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from posttrain.advantages import TIE, reward_tensor
from posttrain.data.micro import alike, planned
from posttrain.data.trees import collate, to_device
from posttrain.parallel.world import world
from posttrain.rewards.rubric import Scored
from posttrain.rewards.scorer import Sampled
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.rollout.turns import completion_tree
from posttrain.runs.records.sampled import RolloutLine
from posttrain.types import Batch, Task, TokenTree

OTHERWISE = ("sampler_logprobs", "staleness")
"""Columns that a line of rollouts.jsonl has as keys of its own."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A task and the ids that its answers continue: Prompt(Task(...), ids=(1, 70, 71), index=12)."""

    task: Task
    ids: tuple[int, ...]
    index: int
    """Its place among the stage's tasks."""


@dataclass(slots=True)
class Response:
    """One completion with all that is known of it.

    Response(Completion(ids=(52, 2), ...), "4", Scored(1.0, {"correct": 1.0}), reward=1.0)
    """

    completion: Completion
    text: str
    scored: Scored
    reward: float | None
    """What trains: the rubric's total and the overlong penalty; None where nobody judged. `scored.total` is the first
    of the two alone."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """One number per id of the completion; NaN at those that the policy did not sample."""
    trains: bool = True
    """Whether it is a branch of its prompt's tree."""

    @property
    def truncated(self) -> bool:
        return self.completion.finish is FinishReason.LENGTH

    @property
    def empty(self) -> bool:
        """No answer: a stop token alone, which trains like any other, or no token at all."""
        return not self.completion.answer_ids

    @property
    def judged(self) -> bool:
        """Whether it has sampled tokens and a reward, so that a KL can be taken from the reward."""
        return self.completion.num_sampled > 0 and self.reward is not None

    @property
    def whole(self) -> bool:
        """Whether it is all that the policy said there, judged or not, cut at its limit or not: what a figure of the
        policy that sampled is a mean over. An aborted one is not."""
        return self.completion.num_sampled > 0 and self.completion.finish is not FinishReason.ABORTED

    @property
    def mask(self) -> np.ndarray:
        """[L], True at each id that the policy sampled: what a loss, a KL or a mean may be taken over. The others, such
        as a tool's answer, are no acts of the policy, whose log-probs would train it to say the tool's part."""
        return np.asarray(self.completion.trains, dtype=np.bool_)

    def give(self, name: str, values: np.ndarray) -> None:
        """Its column `name`, from one value for each id that the policy sampled."""
        # NaN, not 0: a figure that reads a hole by mistake is then NaN, and no plausible number.
        column = np.full(len(self.completion.ids), np.nan, dtype=values.dtype)
        column[self.mask] = values
        self.columns[name] = column

    def sum_of(self, values: np.ndarray) -> float:
        """Over the ids that the policy sampled."""
        return float(values[self.mask].sum())

    def sampled(self, task: Task, group: int) -> Sampled:
        """As rewards take it."""
        return Sampled(task.prompt, self.text, task, self.completion.finish, len(self.completion.ids), group)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its completions."""

    prompt: Prompt
    responses: tuple[Response, ...]

    @property
    def branches(self) -> list[Response]:
        return [response for response in self.responses if response.trains]

    @property
    def tied(self) -> bool:
        """All rewards the same, or fewer than two of them: nothing to learn by comparing.

        As the rewards were given: that one of two right answers is too long tells nothing of the task.
        """
        rewards = [response.scored.total for response in self.responses if response.scored.total is not None]
        # Relative to their size: a sum of rewards of 0.1 is not the same double in every order of its parts.
        return len(rewards) < 2 or max(rewards) - min(rewards) <= TIE * max(map(abs, rewards))

    def parts(self, most_tokens: int | None = None, *, everything: bool = False) -> list[list[Response]]:
        """The branches that train, in as many parts as it takes for none, with the prompt, to have more than
        `most_tokens`: a tree is never cut.

        Args:
            everything: all that was sampled instead, whether it trains or not.
        """
        parts: list[list[Response]] = []
        room = 0
        # Whole answers, and not only those that train: figures of the policy are means over what it says.
        taken = [response for response in self.responses if response.whole] if everything else self.branches
        for response in taken:
            size = len(response.completion.ids)
            if not parts or (most_tokens is not None and size > room):
                parts.append([])
                # The prompt stands in every part again, so it takes its room in each.
                room = (most_tokens or 0) - len(self.prompt.ids)
            parts[-1].append(response)
            room -= size
        return parts

    def trees(self, most_tokens: int | None = None, *, everything: bool = False) -> list[TokenTree]:
        """Each part under its prompt, with the columns of its tokens."""
        return [self._tree(part) for part in self.parts(most_tokens, everything=everything)]

    def _tree(self, responses: Sequence[Response]) -> TokenTree:
        completions = [response.completion for response in responses]
        tree = completion_tree(self.prompt.ids, completions, self.prompt.task.row)
        columned = [
            replace(branch, columns=dict(response.columns))
            for branch, response in zip(tree.branches, responses, strict=True)
        ]
        # The key is of ids and masks alone, so columns may be added after it was made.
        return replace(tree, branches=tuple(columned))


@dataclass(frozen=True, slots=True)
class Rollout:
    """Everything that was sampled for one step."""

    groups: tuple[Group, ...]
    step: int
    """Counted from 1, as in the logs."""
    version: int
    """Of the weights that are about to train on it: how many steps they have taken."""

    @property
    def responses(self) -> list[Response]:
        return [response for group in self.groups for response in group.responses]

    @property
    def staleness(self) -> list[int]:
        """For each response, the steps between the oldest weights that sampled it and those that train on it; 0 where
        sampling and training take turns. Importance ratios correct for it, and the less well the larger it is."""
        return [self.version - response.completion.versions.oldest for response in self.responses]

    @property
    def rewards(self) -> list[float]:
        return [response.reward for response in self.responses if response.reward is not None]

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rewards_B, group_B, mask_BL) of all responses; the mask is True where a token trains."""
        responses = self.responses
        mask_BL = self._mask([response.trains for response in responses])
        group_B = torch.tensor([index for index, group in enumerate(self.groups) for _ in group.responses])
        return reward_tensor([response.reward for response in responses]), group_B, mask_BL

    def sequence_kl(self, own: str, other: str) -> float:
        """Mean over all that was sampled of log own - log other, summed over the response, in nats: the KL of the
        policy that sampled to another, by k1 of whole responses. NaN where nothing was sampled.

        Over all of it, whatever becomes of a response afterwards: a selection by reward or length is biased.
        """
        sums = [
            response.sum_of(response.columns[own].astype(np.float64) - response.columns[other])
            for response in self.responses
            if response.whole
        ]
        return sum(sums) / len(sums) if sums else float("nan")

    def judged(self) -> Tensor:
        """[B, L], True at every sampled token of a response that was judged, whether it trains or not."""
        return self._mask([response.judged for response in self.responses])

    def _mask(self, rows: Sequence[bool]) -> Tensor:
        """[B, L], True at the sampled tokens of the responses that `rows` names."""
        lengths = [len(response.completion.ids) for response in self.responses]
        mask_BL = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.bool)
        for place, (response, row) in enumerate(zip(self.responses, rows, strict=True)):
            mask_BL[place, : lengths[place]] = torch.from_numpy(response.mask & row)
        return mask_BL

    def column(self, name: str) -> Tensor:
        """[B, L] in fp32, 0 where a response has no sampled token, or does not train and has no such column."""
        values_BL = torch.zeros(self.judged().shape)
        for place, response in enumerate(self.responses):
            # A column of all that was sampled is there for those that do not train, too.
            if response.trains or name in response.columns:
                values_L = np.where(response.mask, response.columns[name], 0)
                values_BL[place, : len(values_L)] = torch.from_numpy(values_L)
        return values_BL

    def give_staleness(self) -> None:
        """Every response that trains gets the column `staleness`, by which losses split what they measure."""
        for steps, response in zip(self.staleness, self.responses, strict=True):
            if response.trains:
                response.give("staleness", np.full(response.completion.num_sampled, steps, dtype=np.float32))

    def put(self, name: str, values_BL: Tensor) -> None:
        """The other way: a column of every response that trains."""
        for values_L, response in zip(values_BL, self.responses, strict=True):
            if response.trains:
                response.give(name, values_L[: len(response.mask)].float().numpy()[response.mask])

    def records(self) -> Iterator[RolloutLine]:
        """One line of rollouts.jsonl per completion."""
        for group in self.groups:
            for number, response in enumerate(group.responses):
                completion, columns = response.completion, response.columns
                yield RolloutLine(
                    step=self.step,
                    version=self.version,
                    versions=tuple(completion.versions),
                    staleness=self.version - completion.versions.oldest,
                    row=str(group.prompt.task.row),
                    prompt=_asked(group.prompt.task),
                    answer=group.prompt.task.answer,
                    completion=response.text,
                    number=number,
                    finish=str(completion.finish),
                    reward=response.reward,
                    parts=response.scored.parts,
                    prompt_ids=tuple(group.prompt.ids),
                    ids=tuple(completion.ids),
                    mask=tuple((response.mask & response.trains).tolist()),
                    # None where nobody sampled: a number there would count in every mean over the completion.
                    sampler_logprobs=tuple(
                        round(value, 6) if sampled else None
                        for value, sampled in zip(completion.logprobs, response.mask, strict=True)
                    ),
                    columns={name: _rounded(c) for name, c in columns.items() if name not in OTHERWISE},
                )


@torch.no_grad()
def fill(
    rollout: Rollout,
    name: str,
    call: Callable[[Batch], Tensor],
    tokens: int,
    device: torch.device,
    *,
    everything: bool = False,
    is_sharded: bool = False,
) -> None:
    """Give every response that trains the column `name`: what `call` says of each of its tokens, [N].

    Args:
        tokens: of a micro-batch.
        everything: give it to all that was sampled, whether it trains or not.
        is_sharded: whether `call` passes a model that lies in parts on several processes.
    """
    parts = [part for group in rollout.groups for part in group.parts(tokens, everything=everything)]
    # The parts of a group and its trees are the same lists in the same order; values go back by that.
    trees = [tree for group in rollout.groups for tree in group.trees(tokens, everything=everything)]
    found: list[tuple[list[int], np.ndarray]] = []
    with alike(is_sharded, f"the {name.replace('_', ' ')} of a rollout"):
        for micro in planned(trees, tokens, is_sharded=is_sharded):
            values = call(to_device(collate([trees[index] for index in micro.members]), device)).cpu()
            # float64 survives where the policy computes in it, as invariance tests do.
            values_N = values.numpy() if values.dtype == torch.float64 else values.float().numpy()
            found += [] if micro.idle else [(micro.members, values_N)]
    # Every rank gets all of it: advantages are made of the whole rollout, alike everywhere.
    for members, values_N in (one for own in world().gather(found) for one in own):
        start = 0
        for response in (response for index in members for response in parts[index]):
            response.give(name, values_N[start : start + response.completion.num_sampled])
            start += response.completion.num_sampled


def decide(groups: Sequence[Group], *, drop_truncated: bool) -> None:
    """Set which responses train.

    A stop token alone is an answer, and trains. A response without sampled ids has nothing to train, and its reward
    stays in its group's mean; so does that of one that was cut, which is dropped under `drop_truncated`. One that
    nobody judged or that was aborted says nothing.
    """
    for group in groups:
        for response in group.responses:
            cut = drop_truncated and response.truncated
            # An aborted completion is a random prefix: its reward is of no answer that the policy gives.
            aborted = response.completion.finish is FinishReason.ABORTED
            response.trains = response.judged and not cut and not aborted
            if response.whole:
                response.give("sampler_logprobs", np.asarray(response.completion.sampled_logprobs, dtype=np.float32))


def _asked(task: Task) -> str:
    """The last turn of the prompt, for people; `prompt_ids` has all of it."""
    return task.prompt[-1].content or ""


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Six decimals: what a person reads, and enough to see any ratio."""
    return tuple(round(float(value), 6) for value in values)
