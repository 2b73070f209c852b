"""GRPO as TRL has it (Axolotl's `trl:` group is the same): losses, clips, rewards and how completions are drawn.

Read from TRL 1.9 (July 2026). `loss_type` is the reduction there, and `dapo`, the token mean, is its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.converting.draft import Draft
from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint, number, positive, table

REDUCTIONS = {"grpo": "sequence_mean", "bnpo": "token_mean", "dapo": "token_mean", "dr_grpo": "constant_length"}
METHODS = {"cispo": "cispo", "sapo": "sapo"}
REWARDS: dict[str, dict[str, Any]] = {
    "accuracy_reward": {"kind": "math"},
    "think_format_reward": {"kind": "think_tags"},
}
"""TRL's own reward functions that have one here."""

_CORRECTION = Cannot(
    "the engine's log-probs are compared with the trainer's by posttrain's own rules",
    "see `choices` (`correction`, `token_mask`, `sequence_mask`) in docs/online.md",
)


def online_table(prefix: str = "") -> dict[str, Entry]:
    """The keys of GRPOConfig that transformers does not have; Axolotl writes them below `trl`."""
    rows: dict[Entry, str] = {
        Joint("method", "or a reduction in `choices`; `dapo` is the default there"): "loss_type",
        Joint("method", "`none` with `dr_grpo`, `batch` with `reinforce_pp_baseline`"): "scale_rewards",
        Joint("kl_beta", "0 there where nothing is written"): "beta",
        Goes("completions_per_prompt", positive): "num_generations",
        Joint("prompts_per_step", "counts prompts, not completions"): "generation_batch_size steps_per_generation",
        Joint("updates_per_rollout", "x steps_per_generation / accumulation"): "num_iterations",
        Goes("sampling.max_new_tokens", positive): "max_completion_length max_new_tokens",
        Goes("sampling.temperature", number): "temperature",
        Goes("sampling.top_p", number): "top_p",
        Joint("sampling.top_k", "0 is null"): "top_k",
        Goes("sampling.min_p", number): "min_p",
        Goes("sampling.repetition_penalty", number): "repetition_penalty",
        Joint("clip_low", "and clip_high, where `epsilon_high` is not set"): "epsilon",
        Joint("clip_high", "of cispo less 1: the cap itself there"): "epsilon_high",
        Joint("choices.surrogate", "dual_clip"): "delta",
        Joint("choices.ratio"): "importance_sampling_level",
        Goes("gate_positive", number): "sapo_temperature_pos",
        Goes("gate_negative", number): "sapo_temperature_neg",
        Goes("entropy_weight", number): "entropy_coef",
        Joint("truncated"): "mask_truncated_completions",
        Joint("rewards"): "reward_funcs reward_weights reward_model_name_or_path",
        Joint("engine.kind"): "use_vllm vllm_mode vllm_server_host vllm_server_port vllm_server_base_url",
        Joint("engine.gpu_memory"): "vllm_gpu_memory_utilization",
        Goes("encoding.template_kwargs"): "chat_template_kwargs",
        Idle("what is sampled is in samples.jsonl: `posttrain samples RUN`"): (
            "log_completions num_completions_to_print log_unique_prompts log_completions_hub_repo log_multimodal"
        ),
        Idle("how the engine computes is its own business"): (
            "vllm_server_timeout vllm_group_port vllm_model_impl vllm_enable_sleep_mode ds3_gather_for_generation "
            "cache_implementation use_transformers_paged use_transformers_continuous_batching use_liger_loss "
            "transformers_continuous_batching_config vllm_max_model_length cast_lm_head_to_fp32 reward_num_workers "
            "num_generations_eval vllm_lora_sync"
        ),
        Idle("every epoch of tasks is a permutation"): "shuffle_dataset",
        Idle("no dropout is active where completions are scored"): "disable_dropout",
        Cannot("further arguments of sampling have no key", "see `sampling` in docs/recipes.md"): "generation_kwargs",
        Cannot(
            "an engine takes the server's own sharding", "`engine: {options: {tensor_parallel_size: N}}`", off=(1,)
        ): ("vllm_tensor_parallel_size"),
        Cannot("the reference is the start, and stays", "stages one after the other start from the last"): (
            "sync_ref_model"
        ),
        Idle("said of `sync_ref_model`, which is listed by itself"): "ref_model_mixup_alpha ref_model_sync_steps",
        _CORRECTION: (
            "vllm_importance_sampling_mode vllm_importance_sampling_cap vllm_importance_sampling_clip_max "
            "vllm_importance_sampling_clip_min off_policy_mask_threshold"
        ),
        Idle("trainer and engine are compared by `choices.correction`: docs/online.md"): (
            "vllm_importance_sampling_correction"
        ),
        Joint("choices.kl", "k3_corrected"): "use_bias_correction_kl",
        Cannot("all tokens train, whatever their entropy", "leave it out", off=(1, 1.0)): "top_entropy_quantile",
        Cannot("the entropy has a weight and no target", "`entropy_weight`"): (
            "use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target"
        ),
        Cannot(
            "rewards are summed by their weights, then compared in the group",
            "`weight` beside each reward",
            off=("sum_then_normalize",),
        ): ("multi_objective_aggregation"),
        Cannot("answers are free text", "reward the form: `{kind: regex}`"): (
            "vllm_structured_outputs_regex vllm_guided_decoding_regex"
        ),
        Cannot("sampling beside training is `rollout: {mode: async}`", "write it; docs/scale.md"): (
            "async_prefetch prefetch_depth use_data_producer vllm_sync_interval streaming_partial_batch "
            "streaming_min_groups replay_buffer_size replay_recompute_logps reroll_start_fraction reroll_max_groups "
            "skip_zero_advantage_batches rollout_func max_tool_calling_iterations"
        ),
        Cannot("there is no such loss", "docs/online.md has the methods"): (
            "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg"
        ),
    }
    return {f"{prefix}{name}": entry for name, entry in table(rows).items()}


def read_grpo(draft: Draft, *, prefix: str = "", default_loss: str = "dapo") -> None:
    """The method and its numbers. Rows per step are read by the tool's own function."""
    _read_loss(draft, prefix, default_loss)
    beta = draft.number(f"{prefix}beta", 0.0)
    if draft.takes("kl_beta"):
        draft.put(
            "kl_beta", beta, f"{prefix}beta", comment=None if draft.has(f"{prefix}beta") else f"{draft.tool}'s default"
        )
    elif beta:
        draft.miss(
            f"{prefix}beta", f"`{draft.method}` has no KL", "write `choices: {kl: k3, parameters: {kl_beta: ...}}`"
        )
    draft.leave(f"{prefix}beta", "no KL, as here")
    if draft.has(f"{prefix}use_bias_correction_kl") and beta:
        draft.put("choices.kl", "k3_corrected", f"{prefix}use_bias_correction_kl")
    draft.leave(f"{prefix}use_bias_correction_kl", "off")
    if draft.has(f"{prefix}mask_truncated_completions"):
        draft.put("truncated", "drop", f"{prefix}mask_truncated_completions")
    draft.leave(f"{prefix}mask_truncated_completions", "off, as here")
    if draft.number(f"{prefix}top_k", 0) > 0:
        draft.put("sampling.top_k", int(draft.number(f"{prefix}top_k")), f"{prefix}top_k")
    draft.leave(f"{prefix}top_k", "all tokens, as here")
    _read_rewards(draft, prefix)
    _read_engine(draft, prefix)
    draft.default("completions_per_prompt", 8)
    draft.default("sampling.max_new_tokens", 512)
    draft.leave(f"{prefix}generation_batch_size", "said by `prompts_per_step`")
    draft.leave(f"{prefix}steps_per_generation", "said by `updates_per_rollout`")


def _read_loss(draft: Draft, prefix: str, default: str) -> None:
    loss, scale = (
        str(draft.get(f"{prefix}loss_type", default)),
        str(draft.get(f"{prefix}scale_rewards", "group")).lower(),
    )
    if f"{prefix}scale_rewards" in draft.found and draft.found[f"{prefix}scale_rewards"] is False:
        scale = "none"
    if loss in METHODS:
        draft.method = METHODS[loss]
    elif loss not in REDUCTIONS:
        draft.miss(
            f"{prefix}loss_type", f"there is no loss `{loss}`", "`grpo` stands in; docs/online.md has the methods"
        )
    if scale in ("none", "false") and draft.method == "grpo":
        draft.method = "dr_grpo"
    elif scale == "batch" and draft.method == "grpo":
        draft.method = "reinforce_pp_baseline"
        draft.miss(
            f"{prefix}scale_rewards", "whitened over all tokens of the rollout, not over its rewards", "the nearest"
        )
    own = {"grpo": "sequence_mean", "dr_grpo": "constant_length", "reinforce_pp_baseline": "token_mean"}.get(
        draft.method
    )
    reduction = REDUCTIONS.get(loss)
    if own is not None and reduction is not None and reduction != own:
        draft.put("choices.reduction", reduction, comment=f"loss_type {loss}")
    if reduction == "constant_length":
        length = float(draft.number(f"{prefix}max_completion_length", 512))
        place = "constant_length" if draft.method == "dr_grpo" else "choices.parameters.constant_length"
        draft.put(place, length, comment="max_completion_length, as there")
    for key in ("loss_type", "scale_rewards"):
        if f"{prefix}{key}" in draft.found and not any(entry.key == f"{prefix}{key}" for entry in draft.missed):
            draft.said[f"{prefix}{key}"] = "method"
    _read_clip(draft, prefix)


def _read_clip(draft: Draft, prefix: str) -> None:
    low, high = draft.get(f"{prefix}epsilon"), draft.get(f"{prefix}epsilon_high")
    if draft.method == "cispo":
        cap = number(high) if high is not None else 5.0
        draft.put("clip_high", round(cap - 1, 6), f"{prefix}epsilon_high", comment="a cap of the ratio itself there")
        draft.leave(f"{prefix}epsilon", "cispo has no lower clip there; `clip_low: 1` is none")
    elif draft.takes("clip_low"):
        draft.put("clip_low", number(low) if low is not None else 0.2, f"{prefix}epsilon")
        draft.put(
            "clip_high", number(high if high is not None else low if low is not None else 0.2), f"{prefix}epsilon_high"
        )
    for key in ("epsilon", "epsilon_high"):
        draft.leave(f"{prefix}{key}", "the method has no clip")
    delta = draft.get(f"{prefix}delta")
    if delta is not None:
        draft.put("choices.surrogate", "dual_clip", f"{prefix}delta")
        draft.put("choices.parameters.dual_clip", number(delta), f"{prefix}delta")
    level = str(draft.get(f"{prefix}importance_sampling_level", "token"))
    if level != "token":
        draft.put("choices.ratio", level, f"{prefix}importance_sampling_level")
    draft.leave(f"{prefix}importance_sampling_level", "token, as here")


def _read_rewards(draft: Draft, prefix: str) -> None:
    key = f"{prefix}reward_funcs"
    names = draft.get(key, [])
    names = [names] if isinstance(names, str) else list(names) if isinstance(names, Sequence) else []
    weights = draft.get(f"{prefix}reward_weights")
    rewards: list[dict[str, Any]] = []
    for name in names:
        known = REWARDS.get(str(name))
        module, _, function = str(name).rpartition(".")
        rewards.append(
            dict(known) if known else {"kind": "function", "function": f"{module or 'my_rewards'}:{function}"}
        )
        if known is None:
            draft.miss(
                key,
                f"`{name}` is called there with all prompts, completions and columns",
                "here `def f(prompt, completion, task)` is called for each, or `f(prompts, completions, "
                "tasks)`: docs/rewards.md",
            )
    judge = draft.get(f"{prefix}reward_model_name_or_path")
    if judge is not None:
        rewards.append({"kind": "reward_model", "model": str(judge)})
        draft.said[f"{prefix}reward_model_name_or_path"] = "rewards"
    if isinstance(weights, Sequence) and len(weights) == len(rewards):
        for reward, weight in zip(rewards, weights, strict=True):
            reward["weight"] = number(weight)
    if not rewards:
        rewards = [{"kind": "math"}]
        draft.miss(
            key,
            "the file names no rewards: they are passed in Python there",
            "`{kind: math}` stands in: docs/rewards.md",
        )
    draft.put("rewards", rewards, key, f"{prefix}reward_weights")
    if any(entry.key == key for entry in draft.missed):
        draft.said.pop(key, None)


def _read_engine(draft: Draft, prefix: str) -> None:
    keys = [f"{prefix}{name}" for name in ("use_vllm", "vllm_mode", "vllm_server_host", "vllm_server_port",
                                           "vllm_server_base_url", "vllm_gpu_memory_utilization")]  # fmt: skip
    if draft.truth(keys[0]):
        if str(draft.get(keys[1], "colocate")) == "server":
            url = draft.get(keys[4]) or f"http://{draft.get(keys[2], '127.0.0.1')}:{draft.get(keys[3], 8000)}"
            draft.put("engine.kind", "vllm_served", keys[0], keys[1])
            draft.put("engine.url", str(url).replace("0.0.0.0", "127.0.0.1"), keys[4], keys[2], keys[3])
            draft.assume("the server is vLLM's own (`vllm serve`, docs/scale.md), not `trl vllm-serve`.")
        else:
            draft.put("engine.kind", "vllm_colocated", keys[0], keys[1])
            memory = draft.get(keys[5])
            draft.put("engine.gpu_memory", number(0.3 if memory is None else memory), keys[5])
    for key in keys:
        draft.leave(key, "the engine is the trainer's own")


def prompts_per_step(draft: Draft, completions: int, group: int, *sources: str) -> None:
    """Prompts of a step: completions by the size of a group."""
    draft.put(
        "prompts_per_step", max(1, completions // group), *sources, comment=f"{completions} completions / {group}"
    )
    if completions % group and sources:
        draft.miss(sources[0], f"{completions} completions are no whole groups of {group}", "set `prompts_per_step`")
