"""The keys of Axolotl's YAML: what each becomes here, or why it does not."""

from __future__ import annotations

from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint, number, positive, table, text, truth
from posttrain.converting.huggingface import (
    ALWAYS,
    HUB,
    KERNELS,
    LAUNCHER,
    LORA,
    MEASURES,
    METRICS,
    PADDING,
    RESUME,
    TRACKER,
    TRAINING,
    WORKERS,
)
from posttrain.converting.online import online_table
from posttrain.converting.trackers import AXOLOTL_TRACKERS

ELSEWHERE = Cannot("another program runs the job there", "`posttrain launch` starts it on machines of your own")
PARALLEL = Cannot(
    "a layer is computed whole on each process, and a row too",
    "`compute: {mesh: {shard: N}}` shards the weights; a shorter `max_length` saves the rest",
    off=(1,),
)
VISION = Cannot("rows are text: images are refused", "train on rows without them")
QUANTISED = Cannot("weights train in fp32, or lie frozen in 4 or 8 bits under `qlora`", "leave it out")
EMBEDDINGS = Cannot("the vocabulary grows by `tokens` alone", "list new tokens in `tokens`")

AXOLOTL: dict[str, Entry] = {
    **{
        key: TRAINING[key]
        for key in (
            "learning_rate",
            "max_steps",
            "warmup_ratio",
            "warmup_steps",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
            "bf16",
            "fp16",
            "gradient_checkpointing",
            "activation_offloading",
            "deepspeed",
            "fsdp",
            "fsdp_config",
            "save_steps",
            "save_strategy",
            "save_total_limit",
            "eval_steps",
            "seed",
            "output_dir",
            "neftune_noise_alpha",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "dataloader_drop_last",
            "optim_args",
            "optim_target_modules",
            "lr_scheduler_kwargs",
        )
    },
    **LORA,
    **table(
        {
            Joint("/model"): "base_model",
            Joint("method"): "rl reward_model process_reward_model dpo_loss_type dpo_use_weighting",
            Joint("objective.centre"): "center_rewards_coefficient",
            Joint("losses"): "dpo_loss_weights",
            Joint("label_smoothing", "with `method: cdpo`"): "dpo_label_smoothing",
            Joint("beta", "`preference_weight` of orpo"): "rl_beta",
            Joint("preference_weight"): "orpo_alpha",
            Goes("gamma", number): "simpo_gamma",
            Joint("nll_weight", "with `method: cpo_simpo`"): "cpo_alpha",
            Goes("desirable_weight", number): "kto_desirable_weight",
            Goes("undesirable_weight", number): "kto_undesirable_weight",
            Joint("data"): "datasets pretraining_dataset",
            Joint("held_out"): "test_datasets",
            Joint("held_out", "a share; a number of rows is none"): "val_set_size",
            Joint("rows_per_step", "x gradient_accumulation_steps x the processes"): "micro_batch_size",
            Joint("rows_per_step", "x micro_batch_size x the processes"): "gradient_accumulation_steps",
            Joint("rows_per_step", "x the processes"): "batch_size",
            Joint(
                "rows_per_step", "it then counts bins of `sequence_len` tokens there, and rows here"
            ): "sample_packing",
            Goes("max_length", positive): "sequence_len",
            Joint("encoding.truncation", "drop, or cut_response for `truncate`"): "excess_length_strategy",
            Joint("epochs"): "num_epochs",
            Joint("schedule.kind"): "lr_scheduler",
            Joint("schedule.final_ratio"): "cosine_min_lr_ratio",
            Joint("schedule.final_ratio", "as a share of the learning rate"): "eta_min",
            Joint("optimizer.kind", "AdamW alone"): "optimizer",
            Goes("optimizer.eps", number): "adam_eps",
            Joint("compute.precision"): "bfloat16 float16",
            Joint("adapter.kind"): "adapter",
            Joint("adapter.targets", "all-linear"): "lora_target_linear",
            Goes("adapter.dora", truth): "peft_use_dora",
            Goes("adapter.rslora", truth): "peft_use_rslora",
            Joint("encoding.template"): "chat_template",
            Joint("encoding.template", "as a file of its own"): "chat_template_jinja",
            Goes("encoding.template_kwargs"): "chat_template_kwargs",
            Joint("encoding.train_on", "`all`"): "train_on_inputs",
            Goes("compute.device", text): "device",
            Joint("log.to"): AXOLOTL_TRACKERS,
            TRACKER: "use_comet comet_project_name use_swanlab swanlab_project",
            METRICS: (
                "wandb_name wandb_watch wandb_log_model wandb_run_id mlflow_run_name hf_mlflow_log_artifacts "
                "comet_api_key comet_workspace trackio_run_name trackio_space_id swanlab_experiment_name "
                "swanlab_description swanlab_mode swanlab_log_completions swanlab_workspace swanlab_log_model "
                "swanlab_completion_log_interval swanlab_completion_max_buffer use_otel_metrics otel_metrics_host "
                "otel_metrics_port logging_steps profiler_steps profiler_steps_start include_tokens_per_second "
                "include_tkps eval_table_size project_name tokenizer_save_jinja_files test_value run_name report_to"
            ),
            HUB: "hub_model_id hub_strategy hub_revision push_dataset_to_hub hf_use_auth_token push_to_hub",
            LAUNCHER: (
                "ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters world_size "
                "local_rank fsdp_version dp_shard_size dp_replicate_size device_map use_ray ray_num_workers "
                "resources_per_worker accelerator_config fsdp_final_state_dict_type deepcompile max_memory"
            ),
            KERNELS: (
                "attn_implementation flash_attention flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp "
                "flash_optimum sdp_attention xformers_attention flex_attention flex_attn_compile_kwargs "
                "eager_attention "
                "sage_attention tf32 torch_compile torch_compile_backend torch_compile_mode plugins liger_rms_norm "
                "liger_glu_activation liger_layer_norm liger_rope liger_fused_linear_cross_entropy liger_cross_entropy "
                "liger_rms_norm_gated cut_cross_entropy chunked_cross_entropy chunked_cross_entropy_num_chunks "
                "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel use_kernels fused_attn_kernel "
                "gemma4_hybrid_attn_impl experts_implementation use_scattermoe use_sonicmoe use_dsv4_kernels "
                "use_glm_dsa_kernels gradient_checkpointing_kwargs layer_offloading "
                "torch_empty_cache_steps gc_steps low_cpu_mem_usage large_head_attention sdpa_varlen scaling_softmax "
                "experimental_skip_move_to_device llama4_linearized_experts dsv4_fp4_grouped_mode bfloat16_full_eval "
                "tiled_mlp tiled_mlp_num_shards use_cut_cross_entropy dpo_use_liger_kernel flash_attn_d512 "
                "torchdistx_path "
                "selective_checkpointing embeddings_skip_upcast gc_collect_steps heads_k_stride ring_attn_func strict "
                "nvfp4_merge_aware qlora_sharded_model_loading lora_on_cpu lora_fan_in_fan_out"
            ),
            PADDING: (
                "pad_to_sequence_len group_by_length eval_sample_packing pad_to_multiple_of max_packed_sequence_len "
                "sample_packing_eff_est sample_packing_seq_len_multiplier sample_packing_group_size total_num_tokens "
                "sample_packing_bin_size sample_packing_sequentially multipack_real_batches batch_flattening "
                "pretrain_multipack_attn pretrain_multipack_buffer_size streaming_multipack_buffer_size "
                "dpo_padding_free"
            ),
            WORKERS: (
                "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory "
                "dataloader_num_workers "
                "dataloader_pin_memory dataloader_prefetch_factor skip_prepare_dataset remove_unused_columns streaming "
                "dataset_shard_num dataset_shard_idx shuffle_merged_datasets shuffle_before_merging_datasets "
                "num_dataset_shards_to_save pretraining_sample_concatenation"
            ),
            RESUME: (
                "resume_from_checkpoint auto_resume_from_checkpoints save_only_model save_safetensors saves_per_epoch "
                "save_first_step"
            ),
            Idle("held-out rows are measured every 25 steps (`log.held_out_every`), and at both ends"): (
                "evals_per_epoch eval_batch_size eval_sequence_len eval_strategy evaluation_strategy"
            ),
            MEASURES: "auto_find_batch_size eval_max_new_tokens is_preprocess debug",
            ALWAYS: "full_finetune",
            Idle("the model's folder says of what kind model and tokenizer are"): (
                "model_type tokenizer_type tokenizer_config base_model_config tokenizer_use_fast tokenizer_legacy "
                "tokenizer_use_mistral_common is_llama_derived_model is_mistral_derived_model is_falcon_derived_model "
                "is_qwen_derived_model cls_model_config base_model_ignore_patterns special_tokens.pad_token "
                "gptq_model_v1"
            ),
            Idle("alarms watch every step: docs/alarms.md; `alarms: {on_critical: stop}` ends a run"): (
                "loss_watchdog_threshold loss_watchdog_patience"
            ),
            Idle("the log-probs of the start are computed once, where memory is short"): "precompute_ref_log_probs",
            Idle("what ends a turn is found in the template, and trains"): "eot_tokens",
            Idle("`model_code: refuse` stays: write `run` if `posttrain check` names files of the model to be read"): (
                "trust_remote_code"
            ),
            Idle("4 bits are NF4 with quantised scales, as in QLoRA"): "bnb_config_kwargs",
            Idle("a mixture of experts takes its balancing loss from the model's own config"): "model_config",
            Cannot(
                "the other text of the model's config stays as it is", "change its config.json"
            ): "overrides_of_model_config",
            Cannot(
                "a revision cannot be named",
                "download it into a folder, and name that: `hf download NAME --revision X`",
            ): "revision_of_model",
            Cannot("the model's own tokens end turns and begin texts", "change its tokenizer's files, or `tokens`"): (
                "special_tokens.bos_token special_tokens.eos_token special_tokens.unk_token "
                "special_tokens.additional_special_tokens added_tokens_overrides"
            ),
            Joint("tokens"): "tokens",
            EMBEDDINGS: (
                "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings fix_untrained_tokens "
                "embedding_lr embedding_lr_scale"
            ),
            Cannot(
                "rows begin from no adapter but their own", "merge it first (`posttrain merge`), or `kind: continue`"
            ): ("lora_model_dir"),
            Cannot(
                "one rate holds for all weights", "leave it out"
            ): "loraplus_lr_ratio loraplus_lr_embedding lr_groups",
            Cannot("all layers get an adapter of one rank", "name them in `adapter.targets`"): (
                "peft_layers_to_transform peft_layers_pattern lora_rank_pattern lora_alpha_pattern "
                "peft_layer_replication peft_init_lora_weights peft_trainable_token_indices "
                "peft.loftq_config.loftq_bits "
                "peft_ensure_weight_tying peft_autocast_adapter_dtype"
            ),
            Cannot("all weights train, or an adapter's", "use `adapter`"): (
                "unfrozen_parameters freeze_mm_modules lisa_n_layers lisa_step_interval lisa_layers_attribute"
            ),
            Cannot("the adapter is not merged and begun anew on the way", "stages one after the other do that"): (
                "relora relora_prune_ratio relora_prune_method relora_cpu_offload jagged_restart_steps "
                "jagged_restart_warmup_steps jagged_restart_anneal_steps"
            ),
            Cannot("the schedule has this shape alone: see `schedule`", "leave it out"): (
                "lr_quadratic_warmup cosine_constant_lr_ratio lr_div_factor"
            ),
            QUANTISED: (
                "gptq gptq_groupsize gptq_disable_exllama fp8 fp8_enable_fsdp_float8_all_gather qat quantization "
                "model_quantization_config model_quantization_config_kwargs quantize_moe_experts use_onebitllms "
                "reinit_weights torch_dtype float32 fp32_norms fp32_norm_classes"
            ),
            PARALLEL: (
                "tensor_parallel_size context_parallel_size sequence_parallel_degree expert_parallel_size "
                "expert_parallel_num_nvl_bytes expert_parallel_token_capacity"
            ),
            VISION: "processor_type processor_kwargs image_size image_resize_algorithm",
            ELSEWHERE: (
                "secrets gpu gpu_count volumes volumes[].name volumes[].mount provider node_count branch memory "
                "timeout "
                "dockerfile_commands memory_preprocess timeout_preprocess env"
            ),
            Cannot("the loss of a token is its negative log-probability", "leave it out"): (
                "use_eaft eaft_alpha eaft_k use_dft use_pose pose_split_on_token_ids pose_max_context_len "
                "pose_num_chunks ebft diffusion llmcompressor trainer_cls num_labels"
            ),
            Cannot(
                "training does not end early", "set `epochs` by the held-out losses; stages that sample have `stop`"
            ): ("early_stopping_patience"),
            Cannot(
                "rows are not filtered by length", "`posttrain select` does, as a step of its own"
            ): "min_sample_len",
            Cannot(
                "rows are not made unique here", "`posttrain audit` names duplicates, `posttrain select` takes them out"
            ): ("dataset_exact_deduplication"),
            Cannot("rows go in an order of their own in every epoch", "`data.sources` have turns: docs/mixing.md"): (
                "curriculum_sampling"
            ),
            Cannot("suites measure instead", "list them in `evaluate.suites`: docs/evaluation.md"): (
                "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split generate_samples "
                "num_generation_samples"
            ),
            Cannot(
                "every conversation brings its own system message", "put it into the rows"
            ): "default_system_message",
            Cannot("a prompt has no limit of its own", "`max_length` holds for the whole row"): "max_prompt_len",
            Cannot(
                "the pairs of `rpo_alpha` are `dpo_nll` here", "write `method: dpo_nll` and `nll_weight`"
            ): "rpo_alpha",
        }
    ),
    **online_table("trl."),
    **table(
        {
            METRICS: (
                "comet_experiment_key comet_mode comet_online comet_experiment_config gradio_title gradio_share "
                "gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature axolotl_config_path"
            ),
            LAUNCHER: "ray_run_name gpu_memory_limit dynamic_checkpoint",
            KERNELS: "tiled_mlp_use_original_mlp torch_compile_options",
            WORKERS: "sample_packing_mp_start_method preprocess_iterable total_supervised_tokens",
            Cannot("attention has the model's own softmax", "leave it out"): (
                "scaling_softmax_factor scaling_softmax_bias"
            ),
            Idle("suites ask the models, with a `sampling` of their own: docs/evaluation.md"): (
                "generation_max_new_tokens generation_temperature generation_top_p generation_top_k "
                "generation_prompt_ratio generation_do_sample"
            ),
            Idle("an adapter is merged by `export: {merge: auto}`, or by `posttrain merge`"): "merge_lora merge_method",
            Cannot("AdamW alone trains", "leave it out; set the rate anew"): (
                "adam_epsilon2 adam_beta3 dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of qgalore_rank "
                "qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits "
                "qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size"
            ),
        }
    ),
    **table(
        {
            Cannot("vLLM's server is started with `engine: {kind: vllm_served, launch: {...}}`", "see docs/scale.md"): (
                "vllm.gpu_memory_utilization vllm.max_model_len vllm.serve_module vllm.enforce_eager vllm.host "
                "vllm.port "
                "vllm.tensor_parallel_size vllm.data_parallel_size vllm.dtype vllm.enable_prefix_caching"
            )
        }
    ),
}
"""Every key, dotted where a group of its own has keys."""

NO_ADAPTER = [
    *LORA, "lora_target_linear", "peft_use_dora", "peft_use_rslora", "lora_mlp_kernel", "lora_qkv_kernel",
    "lora_o_kernel", "peft", "lora_on_cpu", "lora_fan_in_fan_out", "loraplus_lr_ratio",
]  # fmt: skip
"""What says nothing where no adapter is asked for."""

DATASET: dict[str, Entry] = table(
    {
        Joint("data.path"): "path data_files",
        Joint("data.path", "`owner/name:config`"): "name",
        Joint("data.format"): "type",
        Joint("data.split", "`train[:100]` as a `limit`"): "split",
        Joint("data.columns"): (
            "field_messages field_chosen field_rejected field text_column message_property_mappings message_field_role "
            "message_field_content"
        ),
        Joint("data.roles"): "roles",
        Joint("encoding.train_roles"): "roles_to_train",
        Joint("encoding.stop_token", "`none`: ignore"): "train_on_eos train_on_eot",
        Joint("encoding.template"): "chat_template",
        Idle("what a file holds is told from its content"): "ds_type trust_remote_code",
        Idle("rows are encoded once, and lie on disk"): "preprocess_shards",
        Idle("the model's template writes the thinking where it has a place for it"): (
            "field_thinking template_thinking_key split_thinking"
        ),
        Idle("tools are read from `tools`"): "field_tools",
        Idle("a message's own `train` says whether it trains"): "message_field_training",
        Cannot(
            "a revision cannot be named", "download it: `hf download NAME --repo-type dataset --revision X`"
        ): "revision",
        Cannot("rows are not taken by shards", "`data: {skip: N, limit: N}`"): "shards shards_idx",
        Cannot("rows train by message, not by places within one", "split the messages, and mark them with `train`"): (
            "message_field_training_detail input_format input_transform"
        ),
        Cannot("the system message stays", "take it out of the rows"): "drop_system_message",
        Cannot(
            "the steps of an answer end where `head.mark` says", "write `head: {kind: steps, mark: ...}`", off=("\n",)
        ): ("step_separator"),
        Cannot("all steps of an answer train", "leave it out"): "train_on_last_step_only max_completion_length",
        Cannot("a row begins with the first", "`data: {skip: N}`"): "skip",
        Cannot("soft labels come from a teacher", "`method: distil_sft`"): "logprobs_field temperature",
        Cannot("an old name", "write `field_messages`"): "conversation field_human field_model",
    }
)
"""The keys of one data set."""
