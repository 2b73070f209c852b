"""What becomes of scored completions: four ways to learn from a rollout, for the one source.

PolicyGradient   columns on every token: advantages, log-probs to start from; the online table, PPO's value model
Distillation     every completion, for a teacher's distributions                  GKD
Pairs            the best and the worst of each group as a preference pair               online DPO
Imitation        the completions that are good enough as demonstrations                  rejection sampling
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain import advantages as credit
from posttrain.config.online import OnlineStage
from posttrain.data.tree_key import make_tree
from posttrain.losses.kl import KL_TERMS, KLWeight
from posttrain.losses.policy_metrics import explain_zero_loss
from posttrain.models.tree.logprobs import Policy
from posttrain.outputs import Metric
from posttrain.training.rl.critic import Valuer
from posttrain.training.rl.rollouts import Group, Response, Rollout, fill
from posttrain.training.source import Parts
from posttrain.types import Batch, TokenTree, Wants


class SampledReference(Protocol):
    """The policy's start, or a teacher, asked at the temperature that samples."""

    kind: str

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor: ...


class Learner(Protocol):
    """See the module's docstring."""

    nothing: str
    """Why a step may have nothing to train on, in words."""

    @property
    def parts(self) -> Parts: ...

    def trees(self, rollout: Rollout, kept: Sequence[Group]) -> list[list[TokenTree]]:
        """For each group that teaches something, its trees."""
        ...

    def after_update(self, trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        """See `posttrain.training.source.Hooks`."""
        ...

    def end_of_step(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """What is logged of the learner itself, from the means of a step's metrics."""
        ...

    def explain(self, values: Mapping[str, float]) -> str | None:
        """What a user may wonder about in the first step's figures."""
        ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _Stateless:
    """A learner without anything that moves beside the policy."""

    parts: Parts = MappingProxyType({})

    def after_update(self, trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        return {}

    def end_of_step(self, values: Mapping[str, float]) -> Mapping[str, float]:
        return {}

    def explain(self, values: Mapping[str, float]) -> str | None:
        return None

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None


# ---------------------------------------------------------------- policy gradients


class PolicyGradient(_Stateless):
    """A row of the online table.

    Args:
        tokens: of a micro-batch; no tree has more.
        reference: the policy's start, where the row has a KL.
        teacher: the model that is learned from, where the row has one.
        engine_is_trainer: the engine's log-probs are the trainer's own (`checks.sampler.same_arithmetic`), so that
            those of the policy that sampled need not be computed again.
    """

    nothing = "no group has a signal (the rewards of each are all equal)"

    def __init__(
        self,
        stage: OnlineStage,
        policy: Policy,
        kl: KLWeight,
        tokens: int,
        reference: SampledReference | None = None,
        critic: Valuer | None = None,
        teacher: SampledReference | None = None,
        *,
        engine_is_trainer: bool = True,
    ):
        self.stage, self.policy, self.kl, self.tokens = stage, policy, kl, tokens
        self.reference, self.critic, self.teacher = reference, critic, teacher
        self._compares = stage.follows_kl or teacher is not None
        starts_ratios = not stage.on_policy and stage.row.proximal == "trainer"
        self.recomputes_old = starts_ratios or (self._compares and not engine_is_trainer)
        """Whether the trainer computes the log-probs of the policy that sampled: to start ratios from, and for what is
        compared with another model's, of which it computes the log-probs too. The engine's rounding would be charged as
        a KL, or learned from, where it is not the trainer's."""
        # NaN until a rollout was measured, which an adaptive weight ignores.
        self._kl_sampled = float("nan")
        self.parts = {"value": critic.part} if critic is not None else {}

    def trees(self, rollout: Rollout, kept: Sequence[Group]) -> list[list[TokenTree]]:
        own = self._fill(rollout)
        self._assign(rollout, own)
        return [trees for group in kept if (trees := group.trees(self.tokens))]

    def after_update(self, trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        return {} if self.critic is None else self.critic.update(trees, index)

    def end_of_step(self, values: Mapping[str, float]) -> Mapping[str, float]:
        if self.reference is None or self.stage.kl_place == "none":
            return {}
        # The weight that this step was trained with, and only then the next one: logged the other way round, a KL that
        # rises would seem to answer a weight that it caused.
        used = self.kl.beta
        self.kl.update(self._kl_sampled)
        return {"kl_coefficient": used, "kl_sequence_reference": self._kl_sampled}

    def explain(self, values: Mapping[str, float]) -> str | None:
        return explain_zero_loss(values, grouped=self.stage.row.advantage not in credit.TOKEN_RULES)

    def state_dict(self) -> Mapping[str, Any]:
        return {"kl_coefficient": self.kl.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kl.load(float(state["kl_coefficient"]))

    def _fill(self, rollout: Rollout) -> str:
        """The log-probs and values that the loss or the rewards need, by the trainer's own forward pass.

        Returns:
            the column of the trainer's policy at the step's start, which other models are compared with.
        """
        temperature, policy = self.stage.trainer_temperature, self.policy
        reference, teacher, measured = self.reference, self.teacher, self.reference is not None

        def give(name: str, call: Callable[[Batch], Tensor], *, everything: bool = False) -> None:
            # Whatever is asked, policy, reference, teacher or value model: all are sharded alike.
            sharded = policy.is_sharded
            fill(rollout, name, call, self.tokens, policy.device, everything=everything, is_sharded=sharded)

        ahead = any(rollout.staleness)
        if ahead:
            rollout.give_staleness()
        # Engine and trainer may compute alike, and where sampling ran ahead it was still with other weights: a KL of
        # the engine's log-probs would then be that of a policy that is gone.
        recomputes = self.recomputes_old or (self._compares and ahead)
        own = "old_logprobs" if recomputes else "sampler_logprobs"
        # All of the rollout where a KL is measured, also what does not train: a mean over a selection is biased.
        if recomputes:
            wants = Wants(temperature=temperature)
            give("old_logprobs", lambda batch: policy(batch, wants).logprobs_N, everything=measured)
        if reference is not None:
            give(
                "reference_logprobs", lambda batch: reference.logprobs(batch, temperature=temperature), everything=True
            )
            self._kl_sampled = rollout.sequence_kl(own, "reference_logprobs")
        if teacher is not None:
            give("teacher_logprobs", lambda batch: teacher.logprobs(batch, temperature=temperature))
        if self.critic is not None:
            give("values", self.critic.model)
        return own

    @property
    def _charges_groups(self) -> bool:
        """Whether a KL is taken from rewards that are then compared: from all of a group, or the comparison is unfair
        to those that train."""
        return self.stage.kl_place == "reward" and self.stage.row.compares_groups

    def _assign(self, rollout: Rollout, own: str) -> None:
        """Advantages, and for PPO returns, of every token.

        Args:
            own: the column of the trainer's policy.
        """
        rewards_B, group_B, mask_BL = rollout.padded()
        kl_BL = ratio_BL = None
        if self.reference is not None and self.stage.kl_place == "reward":
            own_BL = rollout.column(own)
            # No gradient flows through a reward, so this is the estimator's value alone, of the policy that sampled.
            kl_BL = KL_TERMS[self.stage.row.kl].of(
                own_BL, rollout.column("reference_logprobs"), torch.ones_like(own_BL)
            )
        if self.teacher is not None:
            # Both by the trainer's arithmetic where the engine's differs, or rounding is learned from the teacher.
            ratio_BL = rollout.column("teacher_logprobs") - rollout.column(own)
        assigned = credit.advantages(
            self.stage.row.advantage,
            credit.Rollout(
                rewards_B,
                group_B,
                mask_BL,
                kl_BL=kl_BL,
                charged_BL=rollout.judged() if self._charges_groups else None,
                values_BL=rollout.column("values") if self.critic is not None else None,
                teacher_ratio_BL=ratio_BL,
            ),
            kl_beta=self.kl.beta,
            **self.stage.credit_parameters,
        )
        # Only where a response trains: what is assigned to the others entered means and baselines, and no loss.
        rollout.put("advantages", assigned.values_BL)
        if assigned.returns_BL is not None:
            rollout.put("returns", assigned.returns_BL)


# ---------------------------------------------------------------- pairs and demonstrations


class Pairs(_Stateless):
    """The best and the worst completion of each group, as DPO takes them (Guo et al. 2024, arXiv:2402.04792).

    Args:
        least_margin: groups whose best is better by less than this teach nothing.
        annotated: whether a pair carries by how much its best is better, for objectives that ask (`odpo`).
    """

    nothing = "no group has a best and a worst completion (the rewards of each are all equal)"

    def __init__(self, least_margin: float, *, annotated: bool = False):
        self.least_margin, self.annotated = least_margin, annotated

    def trees(self, rollout: Rollout, kept: Sequence[Group]) -> list[list[TokenTree]]:
        return [[self._annotated(group, pair)] for group in kept if (pair := self._pair(group)) is not None]

    def _annotated(self, group: Group, pair: Sequence[Response]) -> TokenTree:
        return _tree(group, pair, _reward(pair[0]) - _reward(pair[1]) if self.annotated else None)

    def _pair(self, group: Group) -> list[Response] | None:
        ranked = sorted(group.branches, key=_reward)
        if len(ranked) < 2 or group.tied or _reward(ranked[-1]) - _reward(ranked[0]) < self.least_margin:
            return None
        if ranked[-1].completion.ids == ranked[0].completion.ids:  # a reward that is not the same twice: no gradient
            return None
        return [ranked[-1], ranked[0]]


class Imitation(_Stateless):
    """Completions of at least a reward, each different one once (Yuan et al. 2023, arXiv:2308.01825; Gulcehre et al.
    2023, arXiv:2308.08998).

    Args:
        least_reward: what is good enough.
        most: of one prompt, the best ones; None: all.
    """

    def __init__(self, least_reward: float, most: int | None):
        self.least_reward, self.most = least_reward, most
        self.nothing = f"no completion has a reward of {least_reward:g} or more"

    def trees(self, rollout: Rollout, kept: Sequence[Group]) -> list[list[TokenTree]]:
        return [[_tree(group, good)] for group in kept if (good := self._good(group))]

    def _good(self, group: Group) -> list[Response]:
        good = [response for response in group.branches if _reward(response) >= self.least_reward]
        # Twice the same answer would count twice, so that imitation would narrow the policy by its own repetition.
        different = list({response.completion.ids: response for response in good}.values())
        return sorted(different, key=lambda response: -_reward(response))[: self.most]


class Distillation(_Stateless):
    """Every completion as it is: what it is worth, the teacher's distributions say.

    Args:
        tokens: of a micro-batch; no tree has more.
    """

    nothing = "no completion has a token"

    def __init__(self, tokens: int):
        self.tokens = tokens

    def trees(self, rollout: Rollout, kept: Sequence[Group]) -> list[list[TokenTree]]:
        return [trees for group in kept if (trees := group.trees(self.tokens))]


def _tree(group: Group, responses: Sequence[Response], margin: float | None = None) -> TokenTree:
    branches = [(response.completion.ids, response.completion.trains) for response in responses]
    return make_tree(group.prompt.ids, branches, group.prompt.task.row, margin=margin)


def _reward(response: Response) -> float:
    assert response.reward is not None  # a response that nobody judged is no branch
    return response.reward
