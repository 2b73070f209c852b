"""The keys of TRL's configs and of its command line: what each becomes here, or why it does not."""

from __future__ import annotations

from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint, number, positive, table, text, truth
from posttrain.converting.huggingface import KERNELS, LORA, TRAINING, WORKERS
from posttrain.converting.online import online_table


def _truncation(value: object) -> str:
    ends = {"keep_start": "cut_response", "keep_end": "keep_prompt_end"}
    if str(value) not in ends:
        raise ValueError(f"neither keep_start nor keep_end: {value}")
    return ends[str(value)]


def _precision(value: object) -> str:
    # Of the weights there: fp32 weights under bf16 arithmetic are what `bf16: true` says.
    return {"float32": "fp32", "bfloat16": "bf16"}.get(str(value).removeprefix("torch."), "auto")


OLD = Idle("prompt and answer have one limit, `max_length`")

TRL: dict[str, Entry] = {
    **online_table(),
    **TRAINING,
    **LORA,
    **table(
        {
            Joint("/model"): "model_name_or_path",
            Joint("data"): "dataset_name datasets",
            Joint("data", "`owner/name:config`"): "dataset_config",
            Joint("data.split"): "dataset_train_split",
            Joint("held_out", "of that split, where `eval_strategy` is not `no`"): "dataset_test_split",
            Joint("method", "of DPO: a row of the table, or `mix` of several; of GRPO: a reduction"): "loss_type",
            Joint("losses", "each with its `weight`; of [sigmoid, sft]: `nll_weight`"): "loss_weights",
            Joint("beta", "`kl_beta` of GRPO, `preference_weight` of ORPO"): "beta",
            Joint("label_smoothing", "with `method: cdpo`; `label_epsilon` of exo_pair"): "label_smoothing",
            Joint("nll_weight", "with `method: dpo_nll`"): "rpo_alpha",
            Joint("nll_weight", "of cpo and cpo_simpo"): "cpo_alpha",
            Joint("gamma"): "simpo_gamma",
            Joint("tail_weight", "with `method: ld_dpo`"): "ld_alpha",
            Joint("tau"): "discopop_tau",
            Joint("method", "dpo_forward_kl, dpo_js, dpo_alpha"): "f_divergence_type",
            Joint("divergence_alpha"): "f_alpha_divergence_coef",
            Joint("method", "wpo"): "use_weighting",
            Goes("desirable_weight", number): "desirable_weight",
            Goes("undesirable_weight", number): "undesirable_weight",
            Joint("objective.centre"): "center_rewards_coefficient",
            Joint("head.mark"): "step_separator",
            Joint("teacher"): "teacher_model_name_or_path",
            Joint("method", "gkd, where the policy samples all rows"): "lmbda",
            Goes("max_length", positive): "max_length max_seq_length",
            Goes("encoding.truncation", _truncation): "truncation_mode",
            Joint("encoding.train_on", "`assistant_only`"): "assistant_only_loss",
            Joint("encoding.train_on", "`completion_only`"): "completion_only_loss",
            Joint("rows_per_step", "it counts bins of `max_length` tokens there, and rows here"): "packing",
            Goes("router_aux_loss_coef", number): "router_aux_loss_coef",
            Goes("encoding.template", text): "chat_template_path",
            Joint("adapter.kind"): "use_peft",
            Goes("adapter.rslora", truth): "use_rslora",
            Goes("adapter.dora", truth): "use_dora",
            Goes("adapter.double_quant", truth): "use_bnb_nested_quant",
            Goes("compute.precision", _precision): "dtype torch_dtype",
            Idle("the reference is the start, computed once where memory is short"): (
                "precompute_ref_log_probs precompute_ref_batch_size model_adapter_name ref_adapter_name "
                "force_use_ref_model ref_model_init_kwargs"
            ),
            OLD: "max_prompt_length max_target_length",
            Idle("rows of text name their column: `data: {columns: {text: NAME}, format: text}`"): "dataset_text_field",
            Idle("packing has no settings here"): "packing_strategy eval_packing num_of_sequences chars_per_token",
            Idle("what ends a turn is found in the template, and trains"): "eos_token",
            Idle("weights are loaded as their folder has them"): "model_init_kwargs teacher_model_init_kwargs",
            Idle("`model_code: refuse` stays: write `run` if `posttrain check` names files of the model to be read"): (
                "trust_remote_code"
            ),
            Idle("4 bits are NF4"): "bnb_4bit_quant_type bnb_4bit_quant_storage lora_task_type",
            Idle("no dropout is active in preference training"): "is_encoder_decoder label_pad_token_id padding_value",
            Idle("suites ask the models: docs/evaluation.md"): "generate_during_eval num_sample_generations",
            KERNELS: "base_model_attribute_name use_logits_to_keep",
            WORKERS: "dataset_streaming streaming ignore_bias_buffers dataset_batch_size",
            Cannot(
                "a revision cannot be named", "download it into a folder, and name that", off=("main",)
            ): "model_revision",
            Cannot("the held-out share of a mixture", "write `held_out: SHARE`"): "test_split_size",
            Cannot("the reference is the start", "stages one after the other"): "reference_free",
            Cannot("all steps of an answer train", "leave it out"): "train_on_last_step_only",
            Cannot("AlphaPO is a method", "`method: alphapo`", off=(0.0,)): "alpha",
            Cannot(
                "an estimate of densities that BCO's authors leave out by default",
                "leave it out",
                off=(1024, 0.5, 10.0),
            ): ("prompt_sample_size min_density_ratio max_density_ratio"),
            Cannot("the teacher's own texts are rows", "`method: distil` makes them, `sft` trains on them"): "seq_kd",
            Cannot("rewards are not clipped", "clip them in a reward of your own"): "reward_clip_range",
            Cannot("of RLOO: the published one has no such step", "`method: reinforce_pp_baseline` whitens"): (
                "normalize_advantages"
            ),
            Idle("environment variables belong to the shell"): "env",
        }
    ),
}
"""Every key of SFTConfig, DPOConfig, KTOConfig, RewardConfig, GRPOConfig, RLOOConfig, ModelConfig and the scripts."""
