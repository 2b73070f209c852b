"""Rollouts that go on while the trainer trains: `OnlineSource` whose groups come from a queue.

    at(step):  weights -> engine, drop what is too old, ask more, wait until a step's groups are whole, train on them

1. Tasks are asked in the order in which they would be in turns (`asks.py`), as many as the bound on staleness lets wait
   (`group_queue.py`), all of them in `at`: while the trainer computes, groups only become whole.
2. A group is scored when its last completion has ended, in a thread of its own, and then written to disk.
3. A step trains on the first `prompts_per_step` groups that are whole, in the order in which they were asked. A slow
   group is passed over, trains in a later step, and is dropped and counted when it is too old for every step.
4. Groups without a signal, where the method resamples, give their place to the next that are whole; where fewer are
   under way than are missing, others are asked for the step, as they are in turns.
5. Of several ranks the first has the queue and the engine's requests; the others get each step's groups from it.
6. With `max_staleness: 0` nothing is left when a step has its groups, so that step asks its own tasks, under its own
   seeds, of its own weights: the run is the one in turns, but that rewards are asked of one group at a time.

What a resume keeps: groups that were scored and have not trained train; a group trains at most once on the way to the
weights that the run ends with; a request that was in flight is asked again; groups that weights of lost steps have
sampled are discarded, asked again where the checkpoint knew them, and counted.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.engines import VLLMServedSettings
from posttrain.config.online import SamplingStage
from posttrain.config.rollout import AsyncRollout
from posttrain.parallel.world import world
from posttrain.rollout.engine import Completion, Request
from posttrain.runs.records.queue import QueuedGroup
from posttrain.training.rl.asks import Ask, AskOrder
from posttrain.training.rl.background import Background, ThreadLoop, TurnLoop
from posttrain.training.rl.group_queue import GroupQueue, LiveGroup, age_shares
from posttrain.training.rl.queue_files import QueueFiles, group_of, newest_version
from posttrain.training.rl.rollouts import Group, Rollout, decide
from posttrain.training.rl.source import OnlineSource, Setup, StepNotes, observe, score_and_decide, unscored


class AsyncSource(OnlineSource):
    """See the module's docstring; of a stage with `rollout: {mode: async}`."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        assert isinstance(setup.stage.rollout, AsyncRollout)
        self.rollout = setup.stage.rollout
        self.queue = GroupQueue(setup.stage.prompts_per_step, self.rollout.max_staleness, self.rollout.late)
        self._asks = AskOrder(setup.curriculum or setup.order, setup.prompts)
        self._files = QueueFiles(setup.folder.path, setup.folder.checkpoints, secrets.token_hex(8))
        self._background: Background | None = None
        self._handed_out: list[LiveGroup] = []
        """What the last step trained on."""
        self._kept: dict[str, QueuedGroup] = {}
        """Groups on disk whose tasks the checkpoint had not asked yet, by the key of their ask."""
        self._version = 0
        """Steps that were taken when the state is asked for."""
        self._dropped = 0
        """Groups that were too old to train, of the whole run."""
        self._asked_again = 0
        """Groups of the checkpoint that are asked again, until a step has said so."""
        self._resumed = False

    # ------------------------------------------------------------ what a checkpoint keeps

    def state_dict(self) -> Mapping[str, Any]:
        # What was handed out last has trained: the loop saves whole steps, and before a step what was before it.
        queue = {
            "run": self._files.run,
            "version": self._version,
            "asks": self._asks.state_dict(),
            "open": [one.ask.to_json() for one in self.queue.live],
            "dropped": self._dropped,
        }
        return {**super().state_dict(), "queue": queue}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        queue = state["queue"]
        self._resumed, self._version, self._dropped = True, int(queue["version"]), int(queue["dropped"])
        if not world().is_main:
            return
        self._files.run = str(queue["run"])
        self._asks.load_state_dict(queue["asks"])
        found, strange = self._files.read()
        lost = [key for key, record in found.items() if newest_version(record) > self._version]
        for key in lost:
            del found[key]
            self._files.remove(key)
        again = 0
        for entry in queue["open"]:
            one = self._live(Ask(*map(int, entry)), found)
            again += one.group is None
            self.queue.add(one)
        # What is left was asked after the checkpoint, or has trained before it and must not do so again.
        for key, record in found.items():
            if (record.number or 0) < int(queue["asks"]["number"]):
                self._files.remove(key)
            else:
                self._kept[key] = record
        self._asked_again = again
        self._say_resumed(len(self.queue) - again, len(self._kept), again, len(lost), strange)

    def _say_resumed(self, whole: int, ahead: int, again: int, lost: int, strange: Sequence[str]) -> None:
        said = f"{whole + ahead} groups that were sampled and have not trained are kept"
        if again:
            said += f"; {again} that were in flight are asked again"
        if lost:
            said += f"; {lost} are discarded, since weights of steps that are lost sampled them"
        if strange:
            said += f"; not read: {', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''}"
        self.setup.progress.say(f"{self.setup.folder.name}: {said}")

    def close(self) -> None:
        if self._background is None:
            return
        background, self._background = self._background, None
        background.close()

    def _finish(self) -> None:
        # Of a run that ends before its last step: nobody has trained on them, and nobody will.
        if left := len(self.queue):
            said = f"{left} groups that were asked do not train: the run ended before their step"
            self.setup.progress.say(f"{self.setup.folder.name}: {said}")
        super()._finish()

    # ------------------------------------------------------------ a step

    def _rollout(self, step: int, now: StepNotes) -> tuple[Rollout, list[Group]]:
        # One rank has the queue: which groups are whole when it looks is a matter of its clock. The two lists travel
        # together, so that the groups that train are those of the rollout on every rank.
        groups, kept, noted = world().agreed(lambda: self._next_groups(step, now))
        self._version = step + 1
        rollout = Rollout(tuple(groups), step + 1, step)
        ages = rollout.staleness
        now.metrics |= {**noted, "staleness_max": max(ages), **age_shares(Counter(ages), self.rollout.max_staleness)}
        return rollout, kept

    def _next_groups(self, step: int, now: StepNotes) -> tuple[list[Group], list[Group], dict[str, float]]:
        """All groups of the step, those that train, and what is logged of them."""
        stage = self.setup.stage
        self._begin(step, now)
        groups: list[Group] = []
        kept: list[Group] = []
        rounds = stage.resample_rounds if stage.tied_groups == "resample" else 0
        # So many may be looked at in one step, as in turns: a policy that solves everything would never end it.
        most, number = stage.prompts_per_step * (1 + rounds), 0
        used: list[int] = []
        while (missing := min(stage.prompts_per_step - len(kept), most - len(groups))) > 0:
            if (short := missing - len(self.queue)) > 0:
                number += 1
                if number > rounds:
                    break
                under_way = [one.ask.task for one in self.queue.live]
                self._start(self._asks.more(step, number, short, [*used, *under_way]))
            taken = self._take(step, missing, now)
            used += [one.ask.task for one in taken]
            fresh = [one.group for one in taken if one.group is not None]
            self._learn_of_tasks(step, used, fresh, now)
            groups += fresh
            kept += [group for group in fresh if stage.tied_groups == "keep" or not group.tied]
        return groups, kept, now.metrics

    def _begin(self, step: int, now: StepNotes) -> None:
        """What the last step trained on is done with; what is too old goes; and the queue is filled."""
        first = self._background is None
        background = self._opened()
        if first and not self._resumed and (left := self._files.clear()):
            name = self.setup.folder.name
            self.setup.progress.say(f"{name}: {left} groups of an attempt without a checkpoint are asked again")
        for one in self._handed_out:
            self._done_with(one, step - 1)
        self._handed_out = []
        stale = self.queue.stale(step)
        background.drop(stale)
        for one in stale:
            self.queue.remove(one)
            self._done_with(one, step - 1)
        self._files.sweep()
        self._dropped += len(stale)
        waiting = [one for one in self.queue.live if one.group is None and one.task is None]  # of a checkpoint
        background.start([(one, self._requests(one)) for one in waiting])
        self._start([self._asks.next() for _ in range(self.queue.room(step, self.steps))])
        now.metrics |= {
            "groups_dropped_stale": len(stale),
            "groups_asked_again": self._asked_again,
            "queue_depth": len(self.queue.whole),
            "queue_in_flight": len(self.queue) - len(self.queue.whole),
        }
        self._asked_again = 0

    def _take(self, step: int, count: int, now: StepNotes) -> list[LiveGroup]:
        assert self._background is not None
        with now.phase("waiting"):
            taken = self._background.wait(lambda: self.queue.ready(step, count))
        for one in taken:
            self.queue.remove(one)
        self._handed_out += taken
        return taken

    def _learn_of_tasks(self, step: int, used: Sequence[int], fresh: Sequence[Group], now: StepNotes) -> None:
        curriculum = self.setup.curriculum
        if curriculum is None:
            return
        if len(used) == len(fresh):  # the step's first groups
            now.metrics |= curriculum.metrics(step, used)
        observe(curriculum, step, used[len(used) - len(fresh) :], fresh)

    def _end_of_step(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        metrics = dict(super()._end_of_step(step, values))
        if self._background is None:
            return metrics
        load, waited = self._background.meter.take(), metrics.get("seconds_waiting", 0.0)
        limit = self._in_flight() * self.setup.stage.completions_per_prompt
        trained = max(0.0, load.seconds - waited)
        if self.setup.stage.off_policy and load.seconds:
            metrics["waiting_share"] = min(1.0, waited / load.seconds)
        metrics["engine_utilisation"] = load.in_flight / limit
        if load.busy + trained > 0:
            # What sampling would be of a step in turns: it says which of the two a faster machine would help.
            metrics["generation_share"] = load.busy / (load.busy + trained)
        return metrics

    # ------------------------------------------------------------ asking

    def _start(self, asks: Sequence[Ask]) -> None:
        assert self._background is not None
        asked = [self._live(ask, self._kept) for ask in asks]
        for one in asked:
            self.queue.add(one)
        self._background.start([(one, self._requests(one)) for one in asked if one.group is None])

    def _live(self, ask: Ask, found: dict[str, QueuedGroup]) -> LiveGroup:
        """An ask, with its group where it is on disk."""
        prompt = self.setup.prompts[ask.task]
        record = found.pop(ask.key, None)
        # Of a curriculum another task may stand in the same place: what it was worth has been learned anew.
        group = None if record is None or record.task != ask.task else group_of(record, prompt)
        whole = LiveGroup(ask, prompt, group=group)
        if group is not None and not self.queue.is_stale(whole, self._version):
            decide([group], drop_truncated=self.setup.stage.truncated == "drop")
            return whole
        if record is not None:
            self._files.remove(ask.key)
        return LiveGroup(ask, prompt)

    def _requests(self, one: LiveGroup) -> list[Request]:
        setup, stage, ask = self.setup, self.setup.stage, one.ask
        sampling = stage.distribution(setup.encoder.stop_ids, ask.seed(setup.seed))
        return [
            Request(one.prompt.ids, sampling, completion=number, occurrence=ask.occurrence)
            for number in range(stage.completions_per_prompt)
        ]

    def _finished(self, one: LiveGroup, completions: Sequence[Completion]) -> Group:
        """In the thread that scores: everything that a step needs of a group, and then its file."""
        group = unscored(self.setup.encoder, one.prompt, completions)
        score_and_decide(self.setup.rubric, self.setup.stage, [group])
        self._files.write(one.ask, group)
        return group

    def _done_with(self, one: LiveGroup, step: int) -> None:
        if one.group is not None:
            self._files.trained(one.ask.key, newest_version(one.group), step)

    # ------------------------------------------------------------ the background

    def _opened(self) -> Background:
        if self._background is None:
            # Weights that are pushed are the engine's own; shared ones move in the middle of its forward passes.
            shares_weights = self.setup.sampler.sync is None
            self._background = Background(
                self.setup.sampler.engine,
                self._finished,
                loop=TurnLoop() if shares_weights else ThreadLoop(),
                in_flight=self._in_flight(),
                scored_at_once=self.rollout.scored_at_once,
            )
        return self._background

    def _in_flight(self) -> int:
        return prompts_in_flight(self.setup.stage, self.rollout)


def prompts_in_flight(stage: SamplingStage, rollout: AsyncRollout) -> int:
    """Prompts that are sampled at a time: no more than may wait, nor than the server is asked at once."""
    most = rollout.in_flight or stage.prompts_per_step * (rollout.max_staleness + 1)
    if isinstance(stage.engine, VLLMServedSettings):
        # Asked beyond that they would wait for the server's turn, and count as begun under weights they never saw.
        most = min(most, max(1, stage.engine.requests // stage.completions_per_prompt))
    return most
