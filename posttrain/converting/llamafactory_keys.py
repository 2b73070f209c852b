"""The keys of LLaMA-Factory's YAML: what each becomes here, or why it does not."""

from __future__ import annotations

from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint, number, positive, table, truth
from posttrain.converting.huggingface import HUB, KERNELS, LAUNCHER, METRICS, PADDING, TRACKER, TRAINING, WORKERS


def _tokens(value: object) -> list[str]:
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise ValueError(f"no list of tokens: {value}")
    return [str(token).strip() for token in listed]


def _special_tokens(value: object) -> list[dict[str, object]]:
    return [{"text": token, "special": True} for token in _tokens(value)]


OPTIMIZER = Cannot("AdamW alone trains, all layers at one rate", "leave it out; set the rate anew")
VISION = Cannot("rows are text: images, audio and video are refused", "train on rows without them")
LOSS = Cannot("the loss of a token is its negative log-probability", "leave it out", off=(0, 0.0))
PPO = Cannot(
    "PPO is the published one: docs/online.md",
    "see `kl_target`, `updates_per_rollout` and `normalise` of the reward model",
)

LLAMAFACTORY: dict[str, Entry] = {
    **TRAINING,
    **table(
        {
            Joint("/model"): "model_name_or_path",
            Joint("method", "pt and sft: sft; rm: reward; ppo, dpo, kto"): "stage",
            Joint("method", "sigmoid: dpo; hinge, ipo, orpo, simpo"): "pref_loss",
            Joint("adapter.kind", "`lora` where nothing is written; `full`: no adapter"): "finetuning_type",
            Joint("adapter.rank"): "lora_rank",
            Joint("adapter.alpha", "twice the rank where nothing is written"): "lora_alpha",
            Joint("adapter.dropout", "in supervised training only"): "lora_dropout",
            Joint("adapter.targets", "`all`: all-linear"): "lora_target oft_target",
            Goes("adapter.rslora", truth): "use_rslora",
            Goes("adapter.dora", truth): "use_dora",
            Joint("adapter.block_size"): "oft_block_size",
            Joint("adapter.bits", "with `kind: qlora`"): "quantization_bit",
            Goes("adapter.double_quant", truth): "double_quantization",
            Joint("beta", "`preference_weight` of orpo"): "pref_beta",
            Joint("nll_weight", "with `method: dpo_nll`"): "pref_ftx",
            Joint("label_smoothing", "with `method: cdpo`"): "dpo_label_smoothing",
            Joint("gamma"): "simpo_gamma",
            Goes("desirable_weight", number): "kto_chosen_weight",
            Goes("undesirable_weight", number): "kto_rejected_weight",
            Joint("rewards", "`{kind: reward_model}`"): "reward_model",
            Joint("data", "by dataset_info.json, where it is found"): "dataset dataset_dir",
            Joint("held_out"): "eval_dataset",
            Joint("held_out", "a share; a number of rows is none"): "val_size",
            Joint("data.mixing"): "mix_strategy",
            Joint("data.sources", "each with its `weight`"): "interleave_probs",
            Joint("data.limit", "of each data set"): "max_samples",
            Joint("max_length", "answers alone are cut"): "cutoff_len",
            Joint("encoding.template", "`chat`, the model's own"): "template",
            Joint("encoding.train_on", "`all`"): "train_on_prompt",
            Joint("encoding.train_on", "`last_assistant`"): "mask_history",
            Goes("encoding.template_kwargs", lambda value: {"enable_thinking": truth(value)}): "enable_thinking",
            Joint(
                "rows_per_step", "it counts bins of `cutoff_len` tokens there, and rows here"
            ): "packing neat_packing",
            Joint("compute.precision"): "pure_bf16",
            Goes("compute.activation_checkpointing", lambda value: not truth(value)): "disable_gradient_checkpointing",
            Goes("router_aux_loss_coef", number): "moe_aux_loss_coef",
            Joint("sampling.max_new_tokens", "of ppo"): "max_new_tokens",
            Goes("sampling.top_p", number): "top_p",
            Goes("sampling.top_k", positive): "top_k",
            Goes("sampling.temperature", number): "temperature",
            Joint("updates_per_rollout", "counts updates"): "ppo_epochs",
            Joint("log.to", "of wandb"): "wandb_project",
            TRACKER: "use_swanlab",
            METRICS: (
                "plot_loss swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key "
                "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret compute_accuracy print_param_status "
                "include_effective_tokens_per_second enable_torch_profiler profiler_output_dir profiler_wait_steps "
                "profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes "
                "profiler_profile_memory profiler_with_stack profile_modules"
            ),
            HUB: "hf_hub_token ms_hub_token om_hub_token cache_dir export_hub_model_id",
            LAUNCHER: (
                "ray_num_workers ray_init_kwargs master_addr master_port ray_run_name "
                "ray_storage_path resources_per_worker placement_strategy"
            ),
            KERNELS: (
                "flash_attn use_unsloth use_unsloth_gc enable_liger_kernel upcast_layernorm upcast_lmhead_output "
                "low_cpu_mem_usage use_kv_cache use_v1_kernels infer_dtype offload_folder compute_dtype device_map "
                "block_diag_attn shift_attn quantization_method quantization_type quantization_device_map infer_backend"
            ),
            PADDING: "ignore_pad_token_for_loss",
            WORKERS: (
                "preprocessing_num_workers preprocessing_batch_size overwrite_cache streaming buffer_size "
                "tokenized_path "
                "data_shared_file_system media_dir"
            ),
            Idle("the same seed draws every order of rows"): "disable_shuffling",
            Idle("`model_code: refuse` stays: write `run` if `posttrain check` names files of the model to be read"): (
                "trust_remote_code"
            ),
            Idle("tool calls are written by the model's template"): "tool_format",
            Idle("rows say their own system message"): "default_system",
            Idle("the reference is the start, computed once where memory is short"): (
                "ref_model_quantization_bit reward_model_quantization_bit reward_model_type"
            ),
            Idle("generation has settings of its own in suites: docs/evaluation.md"): (
                "do_sample num_beams length_penalty skip_special_tokens eval_num_beams predict_with_generate "
                "eval_on_each_dataset repetition_penalty"
            ),
            Cannot("a stage starts from its start, and is compared with that", "stages one after the other"): (
                "ref_model ref_model_adapters reward_model_adapters create_new_adapter adapter_folder"
            ),
            Joint("adapter.kind", "continue"): "adapter_name_or_path",
            Cannot("no weight is trained in full beside an adapter", "new tokens train with `tokens`"): (
                "additional_target resize_vocab"
            ),
            Goes("tokens", _tokens): "add_tokens",
            Goes("tokens", _special_tokens): "add_special_tokens",
            Cannot("new tokens begin as the mean of their pieces", "leave it out", off=("noise_init",)): (
                "init_special_tokens new_special_tokens_config"
            ),
            Cannot(
                "a revision cannot be named", "download it into a folder, and name that", off=("main",)
            ): "model_revision",
            Cannot("one rate holds for all weights", "leave it out"): "loraplus_lr_ratio loraplus_lr_embedding",
            Cannot(
                "the base weights stay as they are: PiSSA would change them, and with them the reference",
                "leave it out: `adapter.init` draws the first factor, the second starts at zero",
            ): "pissa_init pissa_iter pissa_convert",
            Cannot(
                "blocks of a rotation have a size", "`adapter: {kind: oft, block_size: N}`", off=(0,)
            ): "oft_rank module_dropout",
            OPTIMIZER: (
                "use_galore galore_target galore_rank galore_update_interval galore_scale galore_proj_type "
                "galore_layerwise use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj "
                "apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front use_badam badam_mode "
                "badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode "
                "badam_verbose use_adam_mini use_muon"
            ),
            LOSS: ("use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha pref_bco_weight ld_alpha"),
            Cannot("all weights train, or an adapter's", "use `adapter`"): (
                "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro"
            ),
            VISION: (
                "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
                "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate"
            ),
            Idle(
                "of images, which are refused"
            ): "freeze_vision_tower freeze_multi_modal_projector freeze_language_model",
            Cannot("another program trains the model there", "`compute.mesh` and `--processes`: docs/scale.md"): (
                "use_mca use_megatron_bridge megatron_bridge_args use_hyper_parallel hyper_parallel_args "
                "hyper_parallel_cp_size use_kt kt_cpu_activation kt_weight_path kt_non_expert_weight_path "
                "kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size "
                "kt_config tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size "
                "sequence_parallel bias_activation_fusion apply_rope_fusion overlap_param_gather overlap_grad_reduce "
                "use_distributed_optimizer moe_grouped_gemm moe_token_dispatcher_type recompute_granularity "
                "context_parallel_size use_packed_sequences export_hf_on_finish cp_size cp_mode "
                "virtual_pipeline_model_parallel_size"
            ),
            Cannot("weights train in fp32, or lie frozen in 4 or 8 bits under `qlora`", "leave it out"): (
                "fp8 fp8_backend fp8_enable_fsdp_float8_all_gather"
            ),
            Cannot("the model stays as its folder has it", "change its config.json"): (
                "rope_scaling mixture_of_depths split_special_tokens train_from_scratch model_max_length"
            ),
            Cannot("training does not end early", "set `epochs` by the held-out losses"): "early_stopping_steps",
            Cannot(
                "a template that keeps the thinking of earlier turns", "`encoding.template_kwargs`"
            ): "preserve_thinking",
            PPO: "ppo_buffer_size ppo_score_norm ppo_target ppo_whiten_rewards",
            Idle("models are merged by `posttrain merge`"): (
                "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
                "export_quantization_nsamples export_quantization_maxlen export_legacy_format"
            ),
            Idle("of serving: docs/serve.md"): (
                "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen "
                "sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend use_fast_tokenizer max_length"
            ),
        }
    ),
}
"""Every key."""

NO_ADAPTER = [
    "lora_rank", "lora_target", "use_rslora", "use_dora", "loraplus_lr_ratio", "pissa_init", "pissa_iter",
    "additional_target",
    "pissa_convert", "quantization_bit", "double_quantization", "quantization_method", "create_new_adapter",
]  # fmt: skip
"""What says nothing where no adapter is asked for."""
