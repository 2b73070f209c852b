"""OpenRLHF's `train_ppo_ray`: the estimator names the method, and groups of completions are counted in three places."""

from __future__ import annotations

from typing import Any

from posttrain.converting.draft import Draft
from posttrain.converting.entry import number
from posttrain.converting.huggingface import UNSAID
from posttrain.converting.online import prompts_per_step

ESTIMATORS = {
    "gae": "ppo",
    "reinforce": "reinforce_pp",
    "reinforce_baseline": "reinforce_pp_baseline",
    "rloo": "rloo",
    "group_norm": "grpo",
    "dr_grpo": "dr_grpo",
}
"""`algo.advantage.estimator` and the row of the online table."""


def read_rl(draft: Draft) -> None:
    """Method, clips, KL, steps, rewards and the engine."""
    key = "algo.advantage.estimator"
    name = str(draft.get(key, "gae"))
    draft.method = ESTIMATORS.get(name, "ppo")
    if name in ESTIMATORS:
        draft.said[key] = "method"
    else:
        draft.miss(key, f"there is no estimator `{name}`", "`ppo` stands in: docs/online.md")
    draft.leave(key, "gae, with `method: ppo`")
    if key not in draft.found:
        draft.said.pop(key, None)
    _read_loss(draft)
    _read_kl(draft)
    _read_steps(draft)
    _read_rewards(draft)
    _read_engine(draft)
    for foreign, here in (("algo.advantage.gamma", "gamma"), ("algo.advantage.lambd", "lam")):
        if draft.takes(here):
            draft.put(here, draft.number(foreign, 1.0), foreign)
        draft.leave(foreign, f"`{draft.method}` has none")
    if draft.has("critic.adam.lr") or draft.method == "ppo":
        if draft.takes("value_learning_rate"):
            draft.put("value_learning_rate", draft.number("critic.adam.lr", 9e-6), "critic.adam.lr")
        draft.leave("critic.adam.lr", "there is no critic")
    if draft.takes("value_clip"):
        draft.put("value_clip", draft.number("critic.value_clip", 0.5), "critic.value_clip")
    draft.leave("critic.value_clip", "there is no critic")


def _read_loss(draft: Draft) -> None:
    both = draft.get("actor.eps_clip_low_high")
    low, high = [number(one) for one in both] if isinstance(both, list) and len(both) == 2 else [None, None]
    clip = draft.number("actor.eps_clip", 0.2)
    if draft.takes("clip_low"):
        draft.put("clip_low", clip if low is None else low, "actor.eps_clip", "actor.eps_clip_low_high")
        draft.put("clip_high", clip if high is None else high, "actor.eps_clip", "actor.eps_clip_low_high")
    for key in ("actor.eps_clip", "actor.eps_clip_low_high"):
        draft.leave(key, f"`{draft.method}` has no clip")
    if draft.has("actor.dual_clip"):
        draft.put("choices.surrogate", "dual_clip", "actor.dual_clip")
        draft.put("choices.parameters.dual_clip", draft.number("actor.dual_clip"), "actor.dual_clip")
    kind = str(draft.get("actor.policy_loss_type", "ppo"))
    if kind == "gspo":
        draft.put("choices.ratio", "sequence", "actor.policy_loss_type")
    elif draft.method in ("grpo", "dr_grpo"):
        draft.put("choices.reduction", "token_mean", comment="a mean over all tokens there")
    if draft.has("algo.dynamic_filtering_enable"):
        draft.put("choices.groups", "resample", "algo.dynamic_filtering_enable", "algo.dynamic_filtering_range")
    if draft.has("actor.entropy_coef"):
        draft.put("entropy_weight", draft.number("actor.entropy_coef"), "actor.entropy_coef")
    for key in ("actor.policy_loss_type", "algo.dynamic_filtering_enable", "algo.dynamic_filtering_range"):
        draft.leave(key, "as here")


def _read_kl(draft: Draft) -> None:
    weight = draft.number("algo.kl.init_coef", 0.01)
    estimator = str(draft.get("algo.kl.estimator", "k1"))
    in_loss = draft.has("algo.kl.use_loss")
    keys = ("algo.kl.init_coef", "algo.kl.estimator", "algo.kl.use_loss")
    if weight == 0:
        if draft.takes("kl_beta"):
            draft.put("choices.kl", "none", *keys)
    else:
        if draft.takes("kl_beta"):
            draft.put("kl_beta", weight, "algo.kl.init_coef")
        else:
            draft.put("choices.parameters.kl_beta", weight, "algo.kl.init_coef")
        draft.put("choices.kl", estimator, "algo.kl.estimator")
        draft.put("choices.kl_place", "loss" if in_loss else "reward", "algo.kl.use_loss")
    target = draft.get("algo.kl.target")
    if target is not None:
        draft.put("kl_target", number(target), "algo.kl.target")
    for key in (*keys, "algo.kl.target"):
        draft.leave(key, "no KL")


def _read_steps(draft: Draft) -> None:
    prompts = int(draft.number("rollout.batch_size", 1024))
    group = int(draft.number("rollout.n_samples_per_prompt", 1))
    update = int(draft.number("train.batch_size", 128))
    passes = int(draft.number("train.max_epochs", 1))
    draft.put("completions_per_prompt", group, "rollout.n_samples_per_prompt")
    prompts_per_step(draft, prompts * group, group, "rollout.batch_size")
    updates = max(1, prompts * group // update) * passes
    draft.put("updates_per_rollout", updates, "train.batch_size", "train.max_epochs",
              comment=f"{prompts} x {group} completions / {update} x {passes}")  # fmt: skip
    if update % group == 0 and update // group < prompts:
        draft.put("prompts_per_update", update // group, "train.batch_size")
    draft.put("epochs", draft.number("train.num_episodes", 1), "train.num_episodes")
    length = draft.get("rollout.max_new_tokens")
    if length is None:
        length = int(draft.number("data.max_len", 2048))
        draft.assume(f"a completion may be as long as prompt and completion together are there: {length} tokens.")
    draft.put("sampling.max_new_tokens", int(number(length)), "rollout.max_new_tokens")
    for key in ("train.micro_batch_size", "rollout.micro_batch_size"):
        draft.leave(key, "micro-batches are filled by themselves")


def _read_rewards(draft: Draft) -> None:
    rewards: list[dict[str, Any]] = []
    model, url = draft.get("reward.model_name_or_path"), draft.get("reward.remote_url")
    if model is not None:
        rewards.append({"kind": "reward_model", "model": str(model)})
        draft.said["reward.model_name_or_path"] = "rewards"
    if url is not None and str(url).endswith(".py"):
        rewards.append({"kind": "function", "function": f"{url}:reward_func"})
        draft.miss(
            "reward.remote_url",
            "`reward_func(queries, prompts, labels)` is called there with whole texts",
            "here `def f(prompt, completion, task)` is called for each, or `f(prompts, completions, tasks)`: "
            "docs/rewards.md",
        )
    elif url is not None:
        draft.miss("reward.remote_url", "a server that scores", "call it in a function of yours: docs/rewards.md")
    if not rewards:
        rewards = [{"kind": "reward_model", "model": UNSAID}]
        draft.miss("reward.model_name_or_path", "nothing that posttrain can load scores completions", "list `rewards`")
    draft.put("rewards", rewards)
    if draft.has("reward.overlong_buffer_len"):
        length = int(draft.lines["sampling.max_new_tokens"].value)
        buffer = int(draft.number("reward.overlong_buffer_len"))
        weight = draft.number("reward.overlong_penalty_factor", 1)
        rewards.append({"kind": "overlong", "max_length": length, "buffer": buffer, "weight": weight})
        draft.put("rewards", rewards, "reward.overlong_buffer_len", "reward.overlong_penalty_factor")
    draft.leave("reward.overlong_penalty_factor", "nothing is taken from long completions")


def _read_engine(draft: Draft) -> None:
    engines = draft.number("vllm.num_engines", 0)
    if engines and draft.has("train.colocate_all"):
        draft.put("engine.kind", "vllm_colocated", "vllm.num_engines", "train.colocate_all")
        draft.put("engine.gpu_memory", draft.number("vllm.gpu_memory_utilization", 0.95), "vllm.gpu_memory_utilization")
        width = int(draft.number("vllm.tensor_parallel_size", 1))
        if width > 1:
            draft.put("engine.options", {"tensor_parallel_size": width}, "vllm.tensor_parallel_size")
    elif engines:
        draft.put("engine.kind", "vllm_served", "vllm.num_engines")
        draft.put("engine.launch.servers", int(engines), "vllm.num_engines")
        width = int(draft.number("vllm.tensor_parallel_size", 1))
        draft.put("engine.launch.arguments", {"tensor_parallel_size": width}, "vllm.tensor_parallel_size")
    if draft.has("train.async_enable"):
        draft.put("rollout.mode", "async", "train.async_enable")
        draft.put("rollout.max_staleness", int(draft.number("train.async_queue_size", 1)), "train.async_queue_size")
    for key in ("vllm.num_engines", "vllm.gpu_memory_utilization", "vllm.tensor_parallel_size", "train.colocate_all",
                "train.async_enable", "train.async_queue_size"):  # fmt: skip
        draft.leave(key, "the engine is chosen by `engine`")
