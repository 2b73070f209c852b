"""Keys of other tools' files: TRL's and transformers' arguments, Axolotl, LLaMA-Factory, OpenRLHF and verl.

A recipe often begins as a paste. A foreign key is often spelt nearly like a key of posttrain that means something else
(`save_steps` and `steps`), so it is looked up here before a near name is proposed; `explain` says where the key stands.
Each line: a key, dotted from the stage's settings or the recipe's, and after a comma what is different about it; then
what others call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    """{"adapter.rank": "lora_r lora_rank"} -> {"lora_r": "adapter.rank", "lora_rank": "adapter.rank"}"""
    return {name: here for here, names in table.items() for name in names.split()}


OTHER_TOOLS: Mapping[str, str] = _by_name(
    {
        # The step
        "rows_per_step, the rows of a whole step": "batch_size train_batch_size global_batch_size",
        "rows_per_step, the rows of a whole step; micro-batches are filled by themselves": (
            "gradient_accumulation_steps per_device_train_batch_size"
        ),
        "compute.tokens_per_microbatch, which counts tokens and is filled by itself": (
            "micro_batch_size micro_train_batch_size ppo_micro_batch_size_per_gpu ppo_max_token_len_per_gpu"
        ),
        "steps": "max_steps total_training_steps",
        "epochs": "num_epochs num_train_epochs max_epochs total_epochs",
        "max_length": "max_prompt_length max_seq_length max_seq_len max_len sequence_len cutoff_len model_max_length",
        "log.to, a list such as [tensorboard, wandb]": (
            "report_to use_wandb use_tensorboard use_mlflow logger trackio_space_id"
        ),
        "log.to, with the tracker's own keys: [{kind: wandb, project: mine}]": (
            "wandb_project wandb_entity project_name mlflow_experiment_name"
        ),
        # The optimizer and its schedule
        "learning_rate": "lr actor_learning_rate",
        "schedule.kind": "lr_scheduler lr_scheduler_type",
        "schedule.warmup_ratio": "warmup_ratio lr_warmup_ratio lr_warmup_steps_ratio",
        "schedule.warmup_ratio, a share of the steps": "warmup_steps lr_warmup_steps num_warmup_steps",
        "schedule.final_ratio": "min_lr_ratio cosine_min_lr_ratio",
        "optimizer.kind": "optim",
        "optimizer.betas, a list of both": "adam_beta1 adam_beta2 adam_betas",
        "optimizer.eps": "adam_epsilon",
        "optimizer.weight_decay": "weight_decay l2",
        "optimizer.clip_norm": "max_grad_norm max_norm grad_clip gradient_clipping clip_grad",
        # The adapter
        "adapter": "lora peft_config use_peft use_lora",
        "adapter.kind": "peft_type finetuning_type adapter_type",
        "adapter.rank": "lora_r lora_rank",
        "adapter.alpha": "lora_alpha",
        "adapter.dropout": "lora_dropout",
        "adapter.targets": "lora_target lora_target_modules target_modules",
        "adapter.targets, with `all-linear` for all": "lora_target_linear",
        "adapter.dora": "use_dora peft_use_dora",
        "adapter.rslora": "use_rslora",
        "adapter.kind, with `qlora`, and its `bits`": (
            "load_in_4bit load_in_8bit quantization_bit quantization_config bnb_4bit_quant_type"
        ),
        # Memory and arithmetic
        "compute.precision": "bf16 fp16 tf32 dtype torch_dtype mixed_precision",
        "compute.activation_checkpointing": (
            "gradient_checkpointing gradient_checkpointing_kwargs enable_gradient_checkpointing"
        ),
        "compute.device": "use_cpu no_cuda device_map",
        "compute.mesh, on several processes": (
            "deepspeed fsdp fsdp_config fsdp_version fsdp_size zero_stage dp_shard dp_replicate hsdp_shard_dim"
        ),
        "compute.offload_activations": "activation_offloading",
        "compute.offload": "cpu_offload fsdp_offload_params offload_optimizer optim_cpu_offload param_offload",
        # What is written, and when
        "checkpoint.every_steps": "save_steps save_freq save_interval saves_per_epoch",
        "checkpoint.every_steps, a number of steps": "save_strategy",
        "checkpoint.keep": "save_total_limit max_ckpt_num max_actor_ckpt_to_keep",
        "log.held_out_every": "eval_steps test_freq evals_per_epoch",
        "log.held_out_every, a number of steps": "eval_strategy evaluation_strategy do_eval",
        "out": "output_dir save_path default_local_dir logging_dir",
        "name": "run_name experiment_name",
        # Data and its text
        "data": (
            "dataset datasets dataset_name dataset_id train_file train_files train_dataset dataset_dir "
            "dataset_mixture prompt_data"
        ),
        "data.mixing": "mix_strategy stopping_strategy",
        "data.sources, each with its `weight`": "interleave_probs dataset_weights train_data_weights",
        "data.limit": "max_samples max_train_samples",
        "data.columns": "input_key output_key prompt_key chosen_key rejected_key dataset_text_field",
        "data.split": "dataset_split dataset_train_split",
        "held_out": "val_set_size val_size val_files eval_dataset test_size eval_size",
        "encoding.template": "chat_template chat_template_path template apply_chat_template",
        "encoding.stop_token": "eos_token",
        "encoding.train_on": (
            "train_on_inputs train_on_prompt assistant_only_loss completion_only_loss mask_history roles_to_train"
        ),
        "encoding.truncation": "truncation_mode excess_length_strategy",
        # The model
        "model": "model_name_or_path base_model pretrain model_id model_path",
        "model, the adapter's folder": "adapter_name_or_path lora_model_dir",
        "teacher": "teacher_model teacher_model_name_or_path",
        "model_code, which takes run or refuse": "trust_remote_code trust_remote_code_model",
        "seed": "data_seed random_seed",
        # Preferences
        "method": "loss_type pref_loss rl trainer_type stage finetuning_stage",
        "reference.kind": "ref_model ref_model_path reference_free precompute_ref_log_probs sync_ref_model",
        "beta": "pref_beta dpo_beta kto_beta orpo_alpha rl_beta",
        "gamma": "simpo_gamma",
        "nll_weight": "rpo_alpha cpo_alpha pref_ftx",
        "desirable_weight": "kto_chosen_weight kto_desirable_weight",
        "undesirable_weight": "kto_rejected_weight kto_undesirable_weight",
    }
)
"""What other tools call a thing -> what it is called here, with a word where the two differ."""

OTHER_TOOLS_ONLINE: Mapping[str, str] = _by_name(
    {
        # Sampling and rewards
        ("prompts_per_step, the prompts of a whole step; completions are prompts_per_step x completions_per_prompt"): (
            "batch_size train_batch_size per_device_train_batch_size"
        ),
        "prompts_per_step, the prompts of a whole step; micro-batches are filled by themselves": (
            "gradient_accumulation_steps"
        ),
        "prompts_per_step, which counts prompts and not completions": "generation_batch_size",
        "prompts_per_step": "rollout_batch_size",
        "completions_per_prompt": "group_size num_generations n_samples_per_prompt rollout_n",
        "sampling.max_new_tokens": "max_completion_length max_response_length response_length generate_max_len",
        "sampling.temperature": "temperature",
        "prompts_per_update, which counts prompts and not completions": (
            "mini_batch_size ppo_mini_batch_size num_mini_batches"
        ),
        "updates_per_rollout, which counts optimizer updates and not passes": (
            "num_iterations num_ppo_epochs ppo_epochs"
        ),
        "rewards": "reward_funcs reward_function reward_fn custom_reward_function",
        "rewards, with `{kind: reward_model, model: FOLDER}`": (
            "reward_model reward_model_path reward_pretrain remote_rm_url"
        ),
        "rewards, each with its `weight`": "reward_weights",
        "engine.kind": "use_vllm vllm_mode rollout_backend vllm_server_base_url vllm_gpu_memory_utilization",
        "truncated": "mask_truncated_completions overlong_filter",
        "choices.reduction": "loss_agg_mode",
        "choices.ratio": "importance_sampling_level",
        "choices.groups": "dynamic_filtering filter_groups",
        "method": "adv_estimator advantage_estimator scale_rewards",
        "examine.every_steps": "eval_steps test_freq",
        "examine.keep": "load_best_model_at_end metric_for_best_model",
        "stop.patience": "early_stopping_patience",
        # The objective of online methods
        "kl_beta": "beta kl_coef init_kl_coef kl_loss_coef",
        "kl_target": "target_kl",
        "clip_low, and clip_high": "epsilon cliprange clip_range eps_clip clip_ratio",
        "clip_low": "eps_clip_low clip_ratio_low",
        "clip_high": "epsilon_high eps_clip_high clip_ratio_high",
        "entropy_weight": "ent_coef entropy_coef entropy_coeff entropy_loss_coef",
        "value_weight": "vf_coef",
        "value_clip": "cliprange_value",
        "value_learning_rate": "critic_learning_rate critic_lr value_lr",
        "lam": "lambd gae_lambda",
    }
)
"""The same for stages that sample."""

NOT_HERE: Mapping[str, str] = _by_name(
    {
        "metrics are in `metrics.jsonl` of the stage's folder, figures in `report.html`": (
            "use_swanlab comet_project_name wandb_run_id wandb_name wandb_watch plot_loss"
        ),
        "every step is written to `metrics.jsonl`": "logging_steps logging_strategy logging_first_step log_interval",
        "`posttrain push FOLDER owner/name` takes a stage's model to the hub, with its card": (
            "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo export_hub_model_id"
        ),
        "how many processes there are is the launcher's to say": (
            "ddp_timeout ddp_find_unused_parameters local_rank n_gpus_per_node nnodes accelerator_config"
        ),
        "a layer computes whole on each rank": "tensor_parallel_size sequence_parallel_size context_parallel_size",
        "the same command goes on from the last checkpoint; `--fresh` starts anew": (
            "resume_from_checkpoint auto_resume_from_checkpoints overwrite_output_dir load_checkpoint resume_mode"
        ),
        "rows always lie end to end without padding, so there is nothing to pack": (
            "packing sample_packing eval_packing neat_packing packing_strategy padding_free pad_to_sequence_len "
            "group_by_length length_column_name pad_token padding_side pad_to_multiple_of"
        ),
        "the attention is proven on the run's own rows, and chosen by that": (
            "attn_implementation flash_attention flash_attn flash_attn_2 sdp_attention xformers_attention use_unsloth "
            "enable_liger_kernel use_liger_kernel liger_rms_norm torch_compile use_remove_padding"
        ),
        "measurements fill the memory by themselves": (
            "per_device_eval_batch_size eval_batch_size auto_find_batch_size per_gpu_train_batch_size "
            "eval_accumulation_steps"
        ),
        "rows are encoded with all cores, once, and lie on disk": (
            "dataloader_num_workers dataset_num_proc preprocessing_num_workers dataset_prepared_path "
            "dataset_processes overwrite_cache streaming dataloader_pin_memory remove_unused_columns"
        ),
        "a run trains and measures; leave stages out to do less": "do_train do_predict do_eval_only",
        "parts of the vocabulary or the head are not trained beside an adapter": (
            "lora_modules_to_save modules_to_save additional_target"
        ),
        "no noise is added to embeddings": "neftune_noise_alpha noisy_embedding_alpha",
    }
)
"""What has no key here -> what to know instead."""

METHOD_OF_LOSS = {
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo_norm",
    "kto_pair": "kto",
    "aot_pair": "aot",
    "bnpo": "grpo",
}
"""Values of `loss_type` and its like whose method has another name here."""

OFF_WORDS = ("false", "no", "none", "off")
"""What is written to be rid of something, where a key does not know the word itself."""

SWITCHED_OFF = {
    "adapter": "null",
    "export": "none",
    "preflight": "off",
    "schedule": "{kind: constant, warmup_ratio: 0}",
}
"""Groups that can be switched off, and what to write for it: an example that switches them on would mislead."""

STRICT = 0.75
"""How like a key must be to what was written to be proposed: below it, `report_to` is like `export`."""


def to_switch_off(path: Sequence[str | int], value: object) -> str | None:
    """What to write instead of `export: off`, by the path of the key; None where the value means something else."""
    key = next((step for step in reversed(path) if isinstance(step, str)), "")
    if key not in SWITCHED_OFF or str(value).lower() not in OFF_WORDS:
        return None
    return f"to be without it, write `{key}: {SWITCHED_OFF[key]}`"
