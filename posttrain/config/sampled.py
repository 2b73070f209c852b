"""What every stage that trains on its policy's own completions has: tasks, sampling, rewards, examinations."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.base import HeldOut, TrainingStage
from posttrain.config.curriculum import CurriculumSettings
from posttrain.config.engines import EngineSettings, NativeEngineSettings, VLLMColocatedSettings
from posttrain.config.rewards import AnyReward
from posttrain.config.rollout import AsyncRollout, RolloutSettings, SyncRollout
from posttrain.config.settings import PromptEncoding
from posttrain.config.suites import Sampling
from posttrain.config.values import Float, Int, Settings, refuse
from posttrain.sampling import SamplingDistribution

ONLINE_RATE = (1e-6, "Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, section 4.2")


class RolloutSampling(Sampling):
    """How completions are drawn. Every field is explicit: a model folder's generation_config.json changes none."""

    temperature: Float = Field(default=1.0, ge=0)
    """Of sampler and trainer alike: log-probs are computed at the temperature that drew the token."""


class HeldOutTasks(Settings):
    """What the policy is asked while it trains, on tasks that it does not train on."""

    every_steps: Int = Field(default=10, ge=1)
    """Steps between examinations; there is always one at the start and one at the end."""
    limit: Int | None = Field(default=200, ge=1)
    """Ask only so many of the held-out tasks."""
    completions_per_prompt: Int = Field(default=1, ge=1)
    """Answers per task."""
    sampling: RolloutSampling | None = None
    """How they are drawn; null: as in training."""
    rewards: tuple[AnyReward, ...] = ()
    """What judges them; none: the stage's own rewards. A stricter judge than the reward tells learning from hacking."""
    # `best`, because rewards often go on rising after the held-out score has begun to fall.
    keep: Literal["best", "last"] = "best"
    """Which weights the stage ends with: those of the best examination, or the last ones."""


class Stop(Settings):
    """When to end before the last step."""

    target_score: Float | None = None
    """The held-out score that is enough."""
    patience: Int | None = Field(default=None, ge=1)
    """Examinations in a row without a better score."""
    kl_above: Float | None = Field(default=None, gt=0)
    """Nats of KL(policy || start) per response that are too far, of the policy that sampled, a mean over all that it
    sampled in the step. Needs a KL."""


class SamplingStage(TrainingStage):
    """A stage that trains on what its policy samples."""

    WITHOUT_SOURCES: ClassVar[str] = "asks more tasks of one order where a group taught nothing, which has no shares"

    learning_rate: Float = Field(default_factory=lambda stage: online_rate(stage.get("adapter")), gt=0)
    """Highest learning rate. Of the method's paper for all weights; ten times as high with LoRA."""
    held_out: HeldOut = 0.05
    """Tasks to measure on and never train on: a share of the data, rounded down, or other data. 0: none."""
    rewards: tuple[AnyReward, ...] = ()
    """What a completion is rewarded for: the weighted sum of these (docs/rewards.md). In Python they can be passed
    apart, as plain functions."""
    modules: str | None = None
    """Folder in which the modules of `kind: function` are looked for first; a recipe's own if absent."""
    sampling: RolloutSampling = RolloutSampling()
    """How completions are drawn."""
    engine: EngineSettings = NativeEngineSettings()
    """What draws them."""
    rollout: RolloutSettings = SyncRollout()
    """Whether sampling and training take turns."""
    prompts_per_step: Int = Field(default=16, ge=1)
    """Prompts of one step."""
    completions_per_prompt: Int = Field(default=8, ge=1)
    """Completions sampled of each prompt: its group."""
    updates_per_rollout: Int = Field(default=1, ge=1)
    """Optimizer updates on the completions of one step, all in all. 1 stays on-policy, and is all that a method without
    a ratio takes."""
    prompts_per_update: Int | None = Field(default=None, ge=1)
    """Prompts of one update, with all of their completions; null: all of the step."""
    curriculum: CurriculumSettings | None = None
    """Which tasks are asked more often; null: all alike, each epoch a permutation of them."""
    resample_rounds: Int = Field(default=3, ge=1)
    """How often other prompts are sampled in the place of groups without a signal, where the method does that."""
    truncated: Literal["keep", "drop"] = "keep"
    """Completions that were cut at `max_new_tokens`: train on them (no stop token is put there), or not. Their reward
    counts in their group's mean either way, with what a KL in the reward takes from it."""
    examine: HeldOutTasks = HeldOutTasks()
    """The held-out tasks."""
    stop: Stop = Stop()
    """When to end before the last step."""
    encoding: PromptEncoding = PromptEncoding()
    """How prompts become ids."""

    @property
    def needs_rewards(self) -> bool:
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether the policy's start is kept beside it: for a KL, or for an objective that compares the two."""
        return False

    @property
    def off_policy(self) -> bool:
        """Whether completions may be of older weights than those that train on them."""
        return isinstance(self.rollout, AsyncRollout) and self.rollout.max_staleness > 0

    @property
    def ratio_from_sampler(self) -> bool:
        """Whether importance ratios begin at the engine's own log-probs, with no weight for what rounds differently."""
        return False

    @property
    def shares_value_backbone(self) -> bool:
        """Whether a value head stands on the policy's own backbone, which its loss then trains too."""
        return False

    @property
    def measures_kl(self) -> bool:
        """Whether there is a KL to the start to follow; a stage of the online table says itself where there is none."""
        return False

    @property
    def waits_for_rewards(self) -> tuple[str, ...]:
        """Keys that would watch a score which never moves, where nothing rewards a completion."""
        # Held-out tasks may have judges of their own even where nothing rewards the training.
        judged = bool(self.examine.rewards)
        asked = {
            "curriculum": self.curriculum is not None,
            "stop.target_score": self.stop.target_score is not None and not judged,
            "stop.patience": self.stop.patience is not None and not judged,
        }
        return tuple(key for key, on in asked.items() if on)

    @property
    def tied_groups(self) -> str:
        """What becomes of a group whose rewards are all equal: keep, drop or resample."""
        return "keep"

    @property
    def overlong_part(self) -> float | None:
        """The share of the length limit in which a completion is punished for its length; None: it is not."""
        return None

    @property
    def trainer_temperature(self) -> float:
        """At which the trainer takes log-probs: the sampler's own, and 1 where every draw is certain, since a softmax
        at 0 says nothing of the model."""
        return self.sampling.temperature or 1.0

    @property
    def prompts_of_update(self) -> int:
        return min(self.prompts_per_update or self.prompts_per_step, self.prompts_per_step)

    @property
    def passes(self) -> int:
        """How often each prompt of a step is trained on."""
        # Rounded up: the last update of a pass may be a smaller one, and is an update all the same.
        return self.updates_per_rollout // -(-self.prompts_per_step // self.prompts_of_update)

    def distribution(self, stop_ids: frozenset[int], seed: int, *, examine: bool = False) -> SamplingDistribution:
        """The stage's sampling as the engine takes it."""
        sampling = (self.examine.sampling or self.sampling) if examine else self.sampling
        return SamplingDistribution(**sampling.model_dump(), stop_ids=stop_ids, seed=seed)

    def arithmetic(self, tasks: int, steps: int) -> str:
        """8 prompts x 8 completions = 64 completions a step, 1 update on all 8 prompts; 1,500 tasks, ..."""
        prompts, each = self.prompts_per_step, self.completions_per_prompt
        size, updates = self.prompts_of_update, self.updates_per_rollout
        of = f"all {prompts}" if size == prompts else f"{size} of the {prompts}"
        times = "" if self.passes == 1 else f", so that each completion trains {self.passes} times"
        return (
            f"{prompts} prompts x {each} completions = {prompts * each:,} completions a step, "
            f"{updates} update{'s' if updates > 1 else ''} on {of} prompts{' each' if updates > 1 else ''}{times}; "
            f"{tasks:,} tasks, {steps * prompts / tasks:.3g} epochs, {steps:,} steps in all"
        )

    @model_validator(mode="after")
    def _updates_fit(self) -> Self:
        # Otherwise some completions would train more often, and the loss would weigh prompts by their place.
        parts = -(-self.prompts_per_step // self.prompts_of_update)
        if self.updates_per_rollout % parts:
            raise refuse(
                "the updates of a step do not use each completion equally often",
                path=("updates_per_rollout",),
                found=f"{self.updates_per_rollout} updates; {self.prompts_per_step} prompts in updates of "
                f"{self.prompts_of_update} make {parts} for one pass",
                expected=f"a multiple of {parts}",
                remedy=f"write `updates_per_rollout: {parts * max(1, round(self.updates_per_rollout / parts))}`",
            )
        return self

    @model_validator(mode="after")
    def _engine_goes_on(self) -> Self:
        """Refuses what an engine cannot do while the trainer trains."""
        rollout = self.rollout
        if not isinstance(rollout, AsyncRollout):
            return self
        if isinstance(self.engine, VLLMColocatedSettings):
            raise refuse(
                "the colocated engine sleeps while the trainer trains, so nothing can be sampled meanwhile",
                path=("rollout", "mode"),
                found="mode: async, engine: {kind: vllm_colocated}",
                expected="an engine with a card of its own",
                remedy="write `engine: {kind: vllm_served, url: ...}`, or `rollout: sync`",
            )
        if isinstance(self.engine, NativeEngineSettings) and rollout.on_update == "continue":
            raise refuse(
                "the native engine computes keys and values anew when the weights change",
                path=("rollout", "on_update"),
                found="on_update: continue, engine: {kind: native}",
                expected="recompute",
                remedy="leave `on_update` out, or write `engine: {kind: vllm_served, url: ...}`",
            )
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.held_out == 0 and (self.stop.target_score is not None or self.stop.patience is not None):
            raise refuse(
                "`stop` waits for a held-out score, and no task is held out",
                path=("held_out",),
                remedy="write `held_out: 0.1`, or name a file of tasks",
            )
        if self.stop.kl_above is not None and not self.measures_kl:
            raise refuse(
                "there is no KL to follow: this method measures none",
                path=("stop", "kl_above"),
                found=f"kl_above: {self.stop.kl_above:g}",
                remedy="leave `kl_above` out; `patience` ends a stage whose held-out score no longer rises",
            )
        return self


def online_rate(adapter: Any) -> float:
    # Rounded, as in `base.default_learning_rate`.
    return float(f"{ONLINE_RATE[0] * (adapter.RATE[0] if adapter is not None else 1.0):.6g}")
