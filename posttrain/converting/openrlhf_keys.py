"""OpenRLHF's options: what each becomes here, or why it does not; and the flat names of versions before 0.10."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint, number, table, text, whole
from posttrain.converting.huggingface import HUB, KERNELS, LAUNCHER, METRICS, PADDING, RESUME, WORKERS
from posttrain.converting.trackers import OPENRLHF_TRACKERS

MUON = Cannot("AdamW alone trains", "leave it out")
RINGS = Cannot(
    "a layer is computed whole on each process, and a row too",
    "`compute: {mesh: {shard: N}}` shards the weights; a shorter `max_length` saves the rest",
    off=("1", 1),
)
CRITIC = Idle("the value model has the policy's optimizer but for its rate")
AGENT = Cannot("a conversation with tools or an environment is not sampled", "reward single answers: docs/rewards.md")


def _optimizer(prefix: str) -> dict[Entry, str]:
    names = "adam.lr adam.betas optim lr_scheduler lr_warmup_ratio min_lr_ratio max_norm"
    places = dict(
        zip(
            names.split(),
            ("learning_rate", "optimizer.betas", "optimizer.kind", "schedule.kind", "schedule.warmup_ratio",
             "schedule.final_ratio", "optimizer.clip_norm"),
            strict=True,
        )
    )  # fmt: skip
    rows: dict[Entry, str] = {Joint(place): f"{prefix}{name}" for name, place in places.items()}
    rows[Goes("optimizer.eps", number)] = f"{prefix}adam.eps"
    rows[Goes("optimizer.weight_decay", number)] = f"{prefix}adam.weight_decay"
    rows[MUON] = " ".join(f"{prefix}muon.{name}" for name in ("lr", "momentum", "ns_steps", "nesterov", "no_nesterov"))
    return rows


OPENRLHF: dict[str, Entry] = {
    **table(_optimizer("")),
    **table(_optimizer("actor.")),
    **table(
        {
            Joint("method"): "trainer algo.advantage.estimator model.ipo_enable",
            Joint("/model"): "model.model_name_or_path actor.model_name_or_path",
            Joint("data"): "data.dataset data.prompt_dataset",
            Joint("data.sources", "each with its `weight`"): "data.dataset_probs data.prompt_probs",
            Joint("data.split"): "data.dataset_split data.prompt_split",
            Joint("data.columns"): (
                "data.input_key data.output_key data.prompt_key data.chosen_key data.rejected_key data.label_key"
            ),
            Joint("data.limit"): "data.max_samples",
            Joint("held_out"): "eval.dataset eval.split",
            Joint("rows_per_step", "of all processes; of PPO, `updates_per_rollout`"): "train.batch_size",
            Joint("rows_per_step", "micro-batches are filled by themselves"): "train.micro_batch_size",
            Joint("epochs", "of PPO, passes over a rollout: `updates_per_rollout`"): "train.max_epochs",
            Joint("epochs"): "train.num_episodes",
            Joint("max_length"): "data.max_len",
            Joint("encoding.template", "`chat`"): "data.apply_chat_template",
            Joint("encoding.template", "words around a prompt have no place but a Jinja file"): (
                "data.input_template data.tokenizer_chat_template"
            ),
            Joint("encoding.train_on", "`assistant_only`; without it, the last answer"): "data.multiturn",
            Joint("beta"): "model.beta",
            Joint("label_smoothing", "with `method: cdpo`"): "model.label_smoothing",
            Joint("nll_weight", "with `method: dpo_nll`"): "model.nll_loss_coef",
            Joint("objective.margin_scale", "1"): "model.margin_loss_enable",
            Goes("router_aux_loss_coef", number): "model.aux_loss_coef actor.aux_loss_coef",
            Joint("adapter.rank"): "ds.lora.rank",
            Joint("adapter.alpha", "16 where nothing is written"): "ds.lora.alpha",
            Joint("adapter.dropout", "in supervised training only"): "ds.lora.dropout",
            Joint("adapter.targets"): "ds.lora.target_modules",
            Joint("adapter.kind", "qlora"): "ds.load_in_4bit",
            Joint("compute.precision"): "ds.param_dtype bf16",
            Joint("compute.offload", "optimizer"): "ds.adam_offload",
            Joint("compute.activation_checkpointing"): (
                "model.gradient_checkpointing_enable actor.gradient_checkpointing_enable"
            ),
            Joint("checkpoint.every_steps"): "ckpt.save_steps",
            Joint("log.held_out_every", "`examine.every_steps` of PPO"): "eval.steps",
            Goes("/seed", whole): "train.seed",
            Goes("/out", text): "ckpt.output_dir",
            # PPO and its kin
            Joint("clip_low", "and clip_high"): "actor.eps_clip actor.eps_clip_low_high",
            Joint("choices.surrogate", "dual_clip"): "actor.dual_clip",
            Joint("choices.ratio", "`gspo`: sequence"): "actor.policy_loss_type",
            Joint("choices.groups", "resample"): "algo.dynamic_filtering_enable algo.dynamic_filtering_range",
            Joint("entropy_weight"): "actor.entropy_coef",
            Joint("kl_beta"): "algo.kl.init_coef",
            Joint("choices.kl"): "algo.kl.estimator",
            Joint("choices.kl_place", "`loss`; without it, `reward`"): "algo.kl.use_loss",
            Joint("kl_target"): "algo.kl.target",
            Joint("gamma"): "algo.advantage.gamma",
            Joint("lam"): "algo.advantage.lambd",
            Joint("value_learning_rate"): "critic.adam.lr",
            Joint("value_clip"): "critic.value_clip",
            Joint("completions_per_prompt"): "rollout.n_samples_per_prompt",
            Joint("prompts_per_step"): "rollout.batch_size",
            Joint("prompts_per_step", "micro-batches are filled by themselves"): "rollout.micro_batch_size",
            Joint("sampling.max_new_tokens"): "rollout.max_new_tokens",
            Goes("sampling.temperature", number): "rollout.temperature",
            Goes("sampling.top_p", number): "rollout.top_p",
            Joint("rewards", "`{kind: reward_model}`"): "reward.model_name_or_path",
            Joint("rewards", "`{kind: function}`, to be written anew"): "reward.remote_url",
            Joint("rewards", "`{kind: overlong}`"): "reward.overlong_buffer_len reward.overlong_penalty_factor",
            Joint("engine.kind", "vllm_colocated with `train.colocate_all`, else vllm_served"): (
                "vllm.num_engines train.colocate_all"
            ),
            Joint("engine.gpu_memory"): "vllm.gpu_memory_utilization",
            Joint("engine.options"): "vllm.tensor_parallel_size",
            Joint("rollout.mode", "async"): "train.async_enable",
            Joint("rollout.max_staleness"): "train.async_queue_size",
            Idle("the split is named by `data.dataset_split`"): "train_split",
            Cannot("stages that sample keep the best weights by their held-out score", "`examine: {keep: best}`"): (
                "ckpt.best_metric_key"
            ),
            Joint("log.to"): OPENRLHF_TRACKERS,
            METRICS: "logger.logging_steps logger.wandb.group logger.wandb.run_name perf",
            HUB: "use_ms",
            LAUNCHER: (
                "local_rank ds.zero_stage ds.zpg ds.overlap_comm ds.grad_accum_dtype ref.num_nodes "
                "ref.num_gpus_per_node "
                "reward.num_nodes reward.num_gpus_per_node actor.num_nodes actor.num_gpus_per_node critic.num_nodes "
                "critic.num_gpus_per_node train.colocate_actor_ref train.colocate_critic_reward ref.offload "
                "reward.offload "
                "actor_init_on_gpu ref_reward_offload"
            ),
            KERNELS: (
                "ds.attn_implementation ds.experts_implementation ds.use_liger_kernel ds.deepcompile flash_attn "
                "model.gradient_checkpointing_reentrant actor.gradient_checkpointing_reentrant vllm.sync_backend "
                "vllm.sync_with_ray vllm.enable_prefix_caching vllm.enforce_eager vllm.enable_sleep ds.enable_sleep "
                "model.compute_fp32_loss_enable ds.value_head_prefix rollout.vllm_generate_batch_size"
            ),
            PADDING: (
                "ds.packing_samples train.dynamic_batch_enable rollout.max_tokens_per_gpu train.max_tokens_per_gpu"
            ),
            WORKERS: "data.disable_fast_tokenizer data.dataloader_num_workers",
            RESUME: (
                "ckpt.path ckpt.save_hf ckpt.disable_ds ckpt.max_num ckpt.max_mem ckpt.load_enable "
                "ds.use_universal_ckpt critic.save_value_network"
            ),
            CRITIC: (
                "critic.optim critic.adam.betas critic.adam.eps critic.adam.weight_decay critic.lr_scheduler "
                "critic.lr_warmup_ratio critic.min_lr_ratio critic.max_norm critic.muon.lr critic.muon.momentum "
                "critic.muon.ns_steps critic.muon.nesterov critic.muon.no_nesterov"
            ),
            Idle("on one machine every run is bit for bit repeatable"): "train.full_determinism_enable",
            Idle("the value model starts from the policy's start"): "critic.model_name_or_path",
            Idle("held-out tasks are asked as `examine` says"): "eval.temperature eval.n_samples_per_prompt",
            Idle("the KL controller's horizon is that of its authors"): "algo.kl.horizon",
            Idle("the logistic loss is the objective of a reward model"): "model.loss_type",
            RINGS: "ds.ring_attn_size ds.ring_attn_head_stride ds.tensor_parallel_size",
            Cannot(
                "the reference is the start", "stages one after the other start from the last"
            ): "ref.model_name_or_path",
            Cannot("texts train as rows of `text`", "`data: {format: text}` with `template: raw`"): (
                "model.pretrain_mode_enable"
            ),
            Cannot("rewards have the scale that they have", "`normalise` of a reward model's stage stores one"): (
                "reward.normalize_enable"
            ),
            Cannot("rewards are not clipped", "clip them in a reward of your own"): "reward.clip_range",
            Cannot(
                "how a completion ends is no reward", "`truncated: drop`, or a reward of your own that reads `finish`"
            ): ("reward.stop_properly_penalty_coef"),
            Cannot(
                "trainer and engine are compared by posttrain's own rules", "`choices.correction`: docs/online.md"
            ): (
                "algo.advantage.is_correction_enable algo.advantage.is_correction_threshold "
                "algo.advantage.is_correction_type"
            ),
            Cannot("the spread of a group divides in `grpo`", "`method: dr_grpo` leaves it out"): (
                "algo.advantage.no_std_norm"
            ),
            Cannot(
                "no average of weights is kept", "`posttrain merge` averages folders"
            ): "train.enable_ema train.ema_beta",
            Cannot("policy and value model begin together", "leave it out", off=("-1", -1)): (
                "critic.freezing_steps freezing_actor_steps"
            ),
            Cannot("pretraining text is not mixed in", "`data.sources` mix rows: docs/mixing.md"): "ptx_coef",
            Cannot(
                "a prompt has no limit of its own",
                "`max_length` holds for the prompt, `sampling.max_new_tokens` for the answer",
            ): ("data.prompt_max_len"),
            Cannot("rollouts do not stop half way", "leave it out"): "train.partial_rollout_enable",
            AGENT: "train.agent_func_path data.max_images_per_prompt data.image_key actor.freeze_visual_encoder",
        }
    ),
}
"""Every option, by its name of 0.10."""

_SHARED = {
    "max_len": "data.max_len", "dataset": "data.dataset", "dataset_probs": "data.dataset_probs",
    "dataset_split": "data.dataset_split", "input_key": "data.input_key", "output_key": "data.output_key",
    "prompt_key": "data.prompt_key", "chosen_key": "data.chosen_key", "rejected_key": "data.rejected_key",
    "label_key": "data.label_key", "input_template": "data.input_template", "max_samples": "data.max_samples",
    "apply_chat_template": "data.apply_chat_template", "tokenizer_chat_template": "data.tokenizer_chat_template",
    "multiturn": "data.multiturn", "eval_dataset": "eval.dataset", "eval_split": "eval.split",
    "eval_steps": "eval.steps", "eval_temperature": "eval.temperature", "train_batch_size": "train.batch_size",
    "eval_n_samples_per_prompt": "eval.n_samples_per_prompt", "micro_train_batch_size": "train.micro_batch_size",
    "max_epochs": "train.max_epochs", "seed": "train.seed", "full_determinism": "train.full_determinism_enable",
    "save_path": "ckpt.output_dir", "save_steps": "ckpt.save_steps", "ckpt_path": "ckpt.path",
    "save_hf_ckpt": "ckpt.save_hf", "disable_ds_ckpt": "ckpt.disable_ds", "max_ckpt_num": "ckpt.max_num",
    "max_ckpt_mem": "ckpt.max_mem", "load_checkpoint": "ckpt.load_enable", "logging_steps": "logger.logging_steps",
    "use_wandb": "logger.wandb.key", "wandb_org": "logger.wandb.org", "wandb_group": "logger.wandb.group",
    "wandb_project": "logger.wandb.project", "wandb_run_name": "logger.wandb.run_name",
    "use_tensorboard": "logger.tensorboard_dir", "zero_stage": "ds.zero_stage", "zpg": "ds.zpg",
    "adam_offload": "ds.adam_offload", "attn_implementation": "ds.attn_implementation",
    "use_liger_kernel": "ds.use_liger_kernel", "grad_accum_dtype": "ds.grad_accum_dtype",
    "overlap_comm": "ds.overlap_comm", "deepcompile": "ds.deepcompile", "packing_samples": "ds.packing_samples",
    "ds_tensor_parallel_size": "ds.tensor_parallel_size", "ring_attn_size": "ds.ring_attn_size",
    "ring_head_stride": "ds.ring_attn_head_stride", "load_in_4bit": "ds.load_in_4bit", "lora_rank": "ds.lora.rank",
    "lora_alpha": "ds.lora.alpha", "lora_dropout": "ds.lora.dropout", "target_modules": "ds.lora.target_modules",
    "use_ds_universal_ckpt": "ds.use_universal_ckpt", "disable_fast_tokenizer": "data.disable_fast_tokenizer",
    "value_head_prefix": "ds.value_head_prefix", "param_dtype": "ds.param_dtype",
}  # fmt: skip
_OFFLINE = {
    "pretrain": "model.model_name_or_path", "learning_rate": "adam.lr", "adam_betas": "adam.betas",
    "l2": "adam.weight_decay",
    "gradient_checkpointing": "model.gradient_checkpointing_enable", "ref_pretrain": "ref.model_name_or_path",
    "gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant", "beta": "model.beta",
    "ipo": "model.ipo_enable", "label_smoothing": "model.label_smoothing", "nll_loss_coef": "model.nll_loss_coef",
    "aux_loss_coef": "model.aux_loss_coef", "margin_loss": "model.margin_loss_enable", "loss": "model.loss_type",
    "compute_fp32_loss": "model.compute_fp32_loss_enable", "pretrain_mode": "model.pretrain_mode_enable",
    "ref_offload": "ref.offload",
}  # fmt: skip
_PPO = {
    "pretrain": "actor.model_name_or_path", "reward_pretrain": "reward.model_name_or_path",
    "critic_pretrain": "critic.model_name_or_path", "remote_rm_url": "reward.remote_url",
    "l2": "actor.adam.weight_decay",
    "actor_learning_rate": "actor.adam.lr", "critic_learning_rate": "critic.adam.lr", "adam_betas": "actor.adam.betas",
    "lr_scheduler": "actor.lr_scheduler", "lr_warmup_ratio": "actor.lr_warmup_ratio", "max_norm": "actor.max_norm",
    "min_lr_ratio": "actor.min_lr_ratio", "prompt_data": "data.prompt_dataset", "prompt_split": "data.prompt_split",
    "prompt_data_probs": "data.prompt_probs", "prompt_max_len": "data.prompt_max_len",
    "generate_max_len": "rollout.max_new_tokens", "rollout_batch_size": "rollout.batch_size",
    "micro_rollout_batch_size": "rollout.micro_batch_size", "n_samples_per_prompt": "rollout.n_samples_per_prompt",
    "vllm_generate_batch_size": "rollout.vllm_generate_batch_size", "top_p": "rollout.top_p",
    "temperature": "rollout.temperature", "num_episodes": "train.num_episodes", "eps_clip": "actor.eps_clip",
    "eps_clip_low_high": "actor.eps_clip_low_high", "dual_clip": "actor.dual_clip", "value_clip": "critic.value_clip",
    "policy_loss_type": "actor.policy_loss_type", "entropy_loss_coef": "actor.entropy_coef",
    "aux_loss_coef": "actor.aux_loss_coef", "lambd": "algo.advantage.lambd", "gamma": "algo.advantage.gamma",
    "advantage_estimator": "algo.advantage.estimator", "no_advantage_std_norm": "algo.advantage.no_std_norm",
    "init_kl_coef": "algo.kl.init_coef", "kl_estimator": "algo.kl.estimator", "use_kl_loss": "algo.kl.use_loss",
    "kl_target": "algo.kl.target", "kl_horizon": "algo.kl.horizon", "normalize_reward": "reward.normalize_enable",
    "reward_clip_range": "reward.clip_range", "overlong_buffer_len": "reward.overlong_buffer_len",
    "overlong_penalty_factor": "reward.overlong_penalty_factor", "agent_func_path": "train.agent_func_path",
    "dynamic_filtering": "algo.dynamic_filtering_enable", "colocate_all_models": "train.colocate_all",
    "dynamic_filtering_reward_range": "algo.dynamic_filtering_range", "async_train": "train.async_enable",
    "colocate_actor_ref": "train.colocate_actor_ref", "colocate_critic_reward": "train.colocate_critic_reward",
    "use_dynamic_batch": "train.dynamic_batch_enable", "rollout_max_tokens_per_gpu": "rollout.max_tokens_per_gpu",
    "train_max_tokens_per_gpu": "train.max_tokens_per_gpu", "enable_ema": "train.enable_ema",
    "ema_beta": "train.ema_beta",
    "enable_vllm_is_correction": "algo.advantage.is_correction_enable", "vllm_enable_sleep": "vllm.enable_sleep",
    "vllm_is_truncated_threshold": "algo.advantage.is_correction_threshold", "enforce_eager": "vllm.enforce_eager",
    "vllm_num_engines": "vllm.num_engines", "vllm_tensor_parallel_size": "vllm.tensor_parallel_size",
    "vllm_sync_backend": "vllm.sync_backend", "vllm_sync_with_ray": "vllm.sync_with_ray",
    "enable_prefix_caching": "vllm.enable_prefix_caching", "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization",
    "deepspeed_enable_sleep": "ds.enable_sleep", "gradient_checkpointing": "actor.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "actor.gradient_checkpointing_reentrant",
    "save_value_network": "critic.save_value_network", "ref_num_nodes": "ref.num_nodes",
    "ref_num_gpus_per_node": "ref.num_gpus_per_node", "reward_num_nodes": "reward.num_nodes",
    "reward_num_gpus_per_node": "reward.num_gpus_per_node", "actor_num_nodes": "actor.num_nodes",
    "actor_num_gpus_per_node": "actor.num_gpus_per_node", "critic_num_nodes": "critic.num_nodes",
    "critic_num_gpus_per_node": "critic.num_gpus_per_node",
}  # fmt: skip
OLD_NAMES: Mapping[str, Mapping[str, str]] = {
    "": _SHARED,
    "train_ppo_ray": _PPO,
    **dict.fromkeys(("train_sft", "train_dpo", "train_rm", "train_kto"), _OFFLINE),
}
"""By trainer ("" for all): the flat name -> the name of 0.10. `bf16` had none: the default is the same."""
