"""Keys of `transformers`' TrainingArguments and `peft`, which TRL, LLaMA-Factory and Axolotl share, and how they are
read.

The joint ones are read by the functions below: what a step's rows, the warm-up and the length of a run are depends on
several keys at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.converting.draft import Draft, Line
from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint, number, positive, table, text, truth, whole

ADAMW = (
    "adamw",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_hf",
    "adamw_apex_fused",
    "adam",
    "adamw_torch_npu_fused",
    "paged_adamw",
    "paged_adamw_32bit",
)
"""The names of AdamW in fp32, whichever kernel computes it."""
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
}
UNSAID = "FILL-IN"
"""Stands for a model or a file that the other tool's file does not name; `posttrain check` refuses it."""

TRACKER = Cannot(
    "there is no such tracker", "`log: {to: [...]}` takes tensorboard, trackio, wandb and mlflow: docs/run-folder.md"
)
METRICS = Idle("figures are in `metrics.jsonl` of the stage's folder and in `report.html`")
HUB = Idle("a stage's model folder is what `hf upload` takes")
LAUNCHER = Idle("how many processes there are is said when the run is started: `--processes`, or `posttrain launch`")
KERNELS = Idle("the kernels are chosen, and proven on the run's own rows, before step 1")
WORKERS = Idle("rows are encoded with all cores, once, and lie on disk")
PADDING = Idle("rows lie end to end without padding")
RESUME = Idle("the same command goes on from the last checkpoint")
MEASURES = Idle("measurements fill the memory by themselves")
ALWAYS = Idle("a run trains and measures; nothing has to switch that on")


def recomputed(value: Any) -> bool:
    """`offload` and `unsloth` recompute activations too, and lay what they keep elsewhere."""
    return True if str(value).lower().startswith(("offload", "unsloth")) else truth(value)


def moved(value: Any) -> bool:
    """Axolotl's `legacy` and `disk` say by which code and where to."""
    return True if str(value).lower() in ("legacy", "disk") else truth(value)


TRAINING: dict[str, Entry] = table(
    {
        Joint("rows_per_step", "x the accumulation x the processes"): (
            "per_device_train_batch_size gradient_accumulation_steps"
        ),
        Joint("steps", "where above 0; instead of `epochs`"): "max_steps",
        Joint("epochs"): "num_train_epochs",
        Goes("learning_rate", number): "learning_rate",
        Joint("schedule.kind"): "lr_scheduler_type",
        Joint("schedule.final_ratio", "`min_lr_rate`, or `min_lr` by the learning rate"): "lr_scheduler_kwargs",
        Joint("schedule.warmup_ratio"): "warmup_ratio",
        Joint("schedule.warmup_ratio", "as a share of the steps, where their number is known"): "warmup_steps",
        Joint("optimizer.kind", "AdamW alone"): "optim",
        Joint("optimizer.betas"): "adam_beta1 adam_beta2",
        Goes("optimizer.eps", number): "adam_epsilon",
        Goes("optimizer.weight_decay", number): "weight_decay",
        Joint("optimizer.clip_norm", "0 is null"): "max_grad_norm",
        Joint("compute.precision"): "bf16 fp16",
        Goes("compute.activation_checkpointing", recomputed): "gradient_checkpointing activation_checkpointing",
        Goes("compute.offload_activations", moved): "activation_offloading",
        Joint("compute.offload", "where it moves weights off the card"): "deepspeed fsdp fsdp_config",
        Joint("checkpoint.every_steps", "a number of steps"): "save_steps",
        Joint("checkpoint.every_steps"): "save_strategy",
        Goes("checkpoint.keep", positive): "save_total_limit",
        Joint("log.held_out_every", "a number of steps"): "eval_steps",
        Joint("held_out", "`no`: 0"): "eval_strategy evaluation_strategy",
        Goes("/seed", whole): "seed",
        Goes("/out", text): "output_dir",
        Joint("log.to"): "report_to",
        Joint("log.to", "of trackio"): "project",
        METRICS: (
            "run_name logging_dir logging_steps logging_strategy logging_first_step log_on_each_node "
            "logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm "
            "trackio_space_id trackio_bucket_id trackio_static_space_id include_tokens_per_second"
        ),
        HUB: (
            "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision "
            "push_to_hub_model_id push_to_hub_organization push_to_hub_token"
        ),
        LAUNCHER: (
            "ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
            "ddp_backend local_rank _n_gpu world_size accelerator_config parallelism_config use_cpu no_cuda "
            "use_mps_device mp_parameters fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap tpu_num_cores "
            "tpu_metrics_debug split_batches use_ipex jit_mode_eval ray_scope"
        ),
        KERNELS: (
            "tf32 torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config "
            "attn_implementation gradient_checkpointing_kwargs activation_checkpointing_kwargs use_cache "
            "torch_empty_cache_steps use_reentrant_gc half_precision_backend fp16_opt_level "
            "fp16_backend bf16_full_eval fp16_full_eval"
        ),
        WORKERS: (
            "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
            "dataloader_multiprocessing_context dataloader_in_order dataset_num_proc remove_unused_columns "
            "past_index label_names dispatch_batches dataset_kwargs"
        ),
        PADDING: "group_by_length length_column_name train_sampling_strategy pad_token pad_to_multiple_of padding_free",
        RESUME: (
            "resume_from_checkpoint overwrite_output_dir ignore_data_skip restore_callback_states_from_checkpoint "
            "save_only_model save_on_each_node save_safetensors enable_jit_checkpoint"
        ),
        MEASURES: (
            "per_device_eval_batch_size eval_accumulation_steps eval_delay eval_on_start eval_do_concat_batches "
            "eval_use_gather_object batch_eval_metrics prediction_loss_only include_for_metrics auto_find_batch_size "
            "include_inputs_for_metrics per_gpu_train_batch_size per_gpu_eval_batch_size skip_memory_metrics "
            "use_legacy_prediction_loop"
        ),
        ALWAYS: "do_train do_eval do_predict average_tokens_across_devices debug",
        Idle("on one machine every run is bit for bit repeatable"): "full_determinism",
        Idle("every order of rows is drawn from `seed`"): "data_seed",
        Idle("the last rows of an epoch always train"): "dataloader_drop_last",
        Cannot(
            "the weights of the best measurement are not taken back",
            "set `epochs` by the held-out losses in the report; stages that sample have `examine: {keep: best}`",
        ): "load_best_model_at_end",
        Idle("said of the best measurement, which is listed by itself"): "metric_for_best_model greater_is_better",
        Cannot("no noise is added to embeddings", "leave it out; a lower `epochs` fights overfitting too"): (
            "neftune_noise_alpha"
        ),
        Cannot("labels of tokens are not smoothed", "leave it out", off=(0, 0.0)): "label_smoothing_factor",
        Cannot("the optimizer has no further arguments", "see `optimizer` in docs/recipes.md"): (
            "optim_args optim_target_modules"
        ),
    }
)

LORA: dict[str, Entry] = table(
    {
        Joint("adapter.rank"): "lora_r",
        Joint("adapter.alpha"): "lora_alpha",
        Joint("adapter.dropout", "in supervised training only"): "lora_dropout",
        Joint("adapter.targets"): "lora_target_modules",
        Joint("adapter.kind", "qlora"): "load_in_4bit load_in_8bit",
        Cannot(
            "no weight is trained in full beside an adapter",
            "new tokens train with `tokens`; else leave `adapter` out and train all weights",
        ): "lora_modules_to_save",
        Cannot("an adapter goes over linear layers, not over single parameters", "name layers in `adapter.targets`"): (
            "lora_target_parameters"
        ),
    }
)
"""Keys of `peft` by the names that TRL and Axolotl give them."""


def read_step(draft: Draft, *, micro: str, accumulation: str, micro_default: int, key: str = "rows_per_step") -> int:
    """The rows of one step: those of a micro-batch, times the accumulation, times the processes."""
    size = _count(draft, micro, micro_default)
    times = _count(draft, accumulation, 1)
    rows = size * times * draft.processes
    if draft.takes(key):  # stages that sample count prompts: their tool's own function goes on with the rows
        draft.put(key, rows, micro, accumulation, comment=f"{size} x {times} x {draft.processes} processes")
    if draft.processes == 1:
        draft.assume(
            f"one process: {draft.tool} multiplies `{micro}` by the number of GPUs. With 8 of them: "
            "`posttrain convert ... --processes 8`."
        )
    return rows


def read_length(draft: Draft, *, epochs: str, default: float | None) -> None:
    """`steps` where the file limits them, else `epochs`."""
    steps = draft.number("max_steps", -1)
    if steps > 0:
        draft.put("steps", int(steps), "max_steps")
        draft.leave(epochs, "`max_steps` wins over it")
        return
    draft.leave("max_steps", "not set")
    if draft.has(epochs):
        draft.put("epochs", draft.number(epochs, 1.0), epochs)
    elif default is not None:
        draft.default("epochs", default)
    draft.leave(epochs, "not set")


def read_schedule(draft: Draft, *, kind: str = "lr_scheduler_type", default: str = "linear", warmup: float = 0) -> None:
    """Shape and warm-up; a warm-up in steps is a share here, which needs their number.

    Args:
        warmup: the tool's own share where the file says nothing.
    """
    name = str(draft.get(kind, default)).lower()
    shape = SCHEDULES.get(name)
    if shape is None:
        shape = "cosine" if "cosine" in name else "linear"
        draft.miss(kind, f"there is no schedule `{name}`", f"`{shape}` is written; see `schedule` in docs/recipes.md")
        draft.lines["schedule.kind"] = Line(shape, f"in place of {name}")
    elif draft.has(kind):
        draft.put("schedule.kind", shape, kind)
    else:
        draft.default("schedule.kind", shape)
    draft.leave(kind, "not set")
    _read_warmup(draft, holds=name == "constant", default=warmup)
    _read_final_rate(draft)


def _read_warmup(draft: Draft, *, holds: bool, default: float) -> None:
    steps, total = draft.number("warmup_steps", 0), draft.number("max_steps", -1)
    if holds:  # transformers' `constant` has no warm-up, whatever is written beside it
        draft.lines["schedule.warmup_ratio"] = Line(0.0, f"`constant` has none in {draft.tool}")
        draft.leave("warmup_steps", "`constant` has no warm-up")
        draft.leave("warmup_ratio", "`constant` has no warm-up")
        return
    if 0 < steps < 1:  # transformers 5 takes a share here
        draft.put("schedule.warmup_ratio", steps, "warmup_steps")
        draft.leave("warmup_ratio", "`warmup_steps` wins over it")
    elif steps >= 1 and total > 0:
        share = round(min(steps / total, 0.999), 6)
        draft.put("schedule.warmup_ratio", share, "warmup_steps", comment=f"{steps:g} of {total:g} steps")
        draft.leave("warmup_ratio", "`warmup_steps` wins over it")
    elif steps >= 1:
        draft.miss(
            "warmup_steps",
            "the warm-up is a share of the steps, and how many there will be depends on the rows",
            f"write `schedule.warmup_ratio`: {steps:g} divided by the steps that `posttrain check` names; 0.1 "
            f"stands in",
        )
        draft.leave("warmup_ratio", "`warmup_steps` wins over it")
    elif draft.has("warmup_ratio"):
        draft.put("schedule.warmup_ratio", draft.number("warmup_ratio", 0.0), "warmup_ratio")
    else:
        draft.default("schedule.warmup_ratio", default)
    for key in ("warmup_steps", "warmup_ratio"):
        draft.leave(key, "not set")


def _read_final_rate(draft: Draft) -> None:
    further = draft.get("lr_scheduler_kwargs")
    if not isinstance(further, Mapping):
        draft.leave("lr_scheduler_kwargs", "not set")
        return
    rate = draft.get("learning_rate")
    if "min_lr_rate" in further:
        draft.put("schedule.final_ratio", number(further["min_lr_rate"]), "lr_scheduler_kwargs")
    elif "min_lr" in further and rate is not None:
        draft.put("schedule.final_ratio", round(number(further["min_lr"]) / number(rate), 6), "lr_scheduler_kwargs")
    else:
        draft.miss("lr_scheduler_kwargs", "the schedule has no such arguments", "see `schedule` in docs/recipes.md")


def read_optimizer(draft: Draft, *, kind: str = "optim", betas: tuple[float, float] = (0.9, 0.999)) -> None:
    """AdamW with the tool's own moments, where the file does not say others."""
    name = str(draft.get(kind, "adamw_torch")).removeprefix("OptimizerNames.").lower()
    if name in ADAMW:
        draft.leave(kind, "AdamW is the optimizer")
    else:
        draft.miss(
            kind,
            f"AdamW alone trains, with moments in fp32; `{name}` takes other steps or rounds its moments",
            "AdamW stands in; of an optimizer of another kind (adafactor, lion, muon) set the rate anew",
        )
    first, second = draft.number("adam_beta1", betas[0]), draft.number("adam_beta2", betas[1])
    if draft.has("adam_beta1") or draft.has("adam_beta2"):
        draft.put("optimizer.betas", [first, second], "adam_beta1", "adam_beta2")
    else:
        draft.default("optimizer.betas", [first, second])
    for key in ("adam_beta1", "adam_beta2"):
        draft.leave(key, "not set")
    norm = draft.number("max_grad_norm", 1.0)
    if draft.has("max_grad_norm"):
        draft.put("optimizer.clip_norm", norm if norm > 0 else None, "max_grad_norm")
    draft.leave("max_grad_norm", "not set")


def read_precision(draft: Draft) -> None:
    """bf16 where it is asked for; fp16 is not here."""
    for key in ("bf16", "bfloat16", "pure_bf16"):
        if draft.has(key):
            auto = str(draft.get(key)).lower() in ("auto", "full")
            draft.put("compute.precision", "auto" if auto else "bf16", key)
    for key in ("fp16", "float16"):
        if draft.has(key):
            draft.miss(key, "nothing is computed in fp16", "`compute.precision: bf16` on cards that have it, else fp32")
    for key in ("bf16", "bfloat16", "pure_bf16", "fp16", "float16"):
        draft.leave(key, "off, as here")


def read_sharding(draft: Draft) -> None:
    """Whether weights leave the card; how they are sharded is the mesh's business, and no number depends on it."""
    for key in ("deepspeed", "fsdp", "fsdp_config"):
        value = draft.get(key)
        if value is None:
            draft.leave(key, "not set")
        elif "offload" in str(value).lower() and "offload_params': False" not in str(value):
            draft.put("compute.offload", "all", key)
        else:
            draft.leave(key, "`compute.mesh: auto` shards within a machine; no number depends on it")


def read_saving(draft: Draft) -> None:
    """Checkpoints and measurements, where they are counted in steps."""
    strategy = str(draft.get("save_strategy", "steps")).lower()
    every = draft.number("save_steps", 0)
    if strategy in ("no", "epoch", "best") and "save_strategy" in draft.found:
        draft.leave(
            "save_strategy", "checkpoints are for resuming: every 50 steps or 10 minutes, and the last two kept"
        )
        draft.leave("save_steps", "`save_strategy` wins over it")
    elif every >= 1:
        draft.put("checkpoint.every_steps", int(every), "save_steps", "save_strategy")
    for key in ("save_steps", "save_strategy"):
        draft.leave(key, "checkpoints are for resuming: every 50 steps or 10 minutes, and the last two kept")
    measured = draft.number("eval_steps", 0)
    if measured >= 1:
        draft.put("log.held_out_every", int(measured), "eval_steps")
    draft.leave("eval_steps", "held-out rows are measured every 25 steps")


def read_lora(
    draft: Draft, *, kind: str, rank: int, alpha: float | None, dropout: float = 0.0, rank_key: str = "lora_r"
) -> None:
    """The adapter of a file that has one.

    Args:
        kind: "lora" or "qlora".
        rank, alpha, dropout: the tool's own; alpha None: twice the rank.
    """
    bits = 8 if draft.has("load_in_8bit") else 4
    if kind == "lora" and (draft.has("load_in_4bit") or draft.has("load_in_8bit")):
        kind = "qlora"
    draft.put("adapter.kind", kind, "adapter", "finetuning_type", "use_peft", "load_in_4bit", "load_in_8bit")
    if kind == "qlora":
        draft.put("adapter.bits", bits, "load_in_8bit", "load_in_4bit")
    ranks = draft.number(rank_key, rank)
    draft.put("adapter.rank", int(ranks), rank_key)
    scale = draft.number("lora_alpha", 2 * ranks if alpha is None else alpha)
    draft.put(
        "adapter.alpha", scale, "lora_alpha", comment=None if draft.has("lora_alpha") else draft.tool + "'s default"
    )
    share = draft.number("lora_dropout", dropout)
    if share and draft.method in ("sft",):
        draft.put("adapter.dropout", share, "lora_dropout")
    elif share:
        draft.miss(
            "lora_dropout",
            f"outside of supervised training no adapter has dropout ({share:g} there): policy and reference would "
            "differ at step 0",
            "leave it out",
        )
    for key in ("lora_dropout", "load_in_4bit", "load_in_8bit"):
        draft.leave(key, "off, as here")


def no_lora(draft: Draft, keys: Iterable[str]) -> None:
    """Without an adapter the keys of one say nothing."""
    for key in keys:
        draft.leave(key, "all weights train: no adapter is asked for")


def _count(draft: Draft, key: str, default: int) -> int:
    value = draft.number(key, default)
    if value < 1 or value != int(value):
        draft.miss(key, f"not a whole number above 0; {default} stands in", "write `rows_per_step` by hand")
        return default
    return int(value)
