"""LLaMA-Factory's YAML as a recipe.

Read from its source (0.9, August 2026): a file without `finetuning_type` trains a LoRA of rank 8 whose alpha is twice
the rank; without a schedule it is transformers' linear one; `cutoff_len` cuts prompt and answer, each by its share;
SimPO, ORPO and IPO take the mean over tokens, all other losses the sum; `pref_ftx` adds the mean negative log-
likelihood of the chosen answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.converting.draft import Draft, flatten
from posttrain.converting.huggingface import (
    LORA,
    UNSAID,
    no_lora,
    read_length,
    read_lora,
    read_optimizer,
    read_precision,
    read_saving,
    read_schedule,
    read_sharding,
    read_step,
)
from posttrain.converting.llamafactory_keys import LLAMAFACTORY, NO_ADAPTER
from posttrain.converting.llamafactory_rows import read_data
from posttrain.converting.online import prompts_per_step
from posttrain.converting.rows import Folders
from posttrain.converting.trackers import read_report_to
from posttrain.errors import ConfigError

STAGES = {"pt": "sft", "sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "kto"}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo", "kto_pair": "kto"}
ENDS = {
    "export_dir": ("merges an adapter into its base", "write `posttrain merge ADAPTER OUT`"),
    "infer_backend": ("talks to a model", "write `posttrain generate MODEL`, or `posttrain serve MODEL`"),
    "eval_dataset": ("measures a model", "write `posttrain compare A B --prompts FILE`: docs/evaluation.md"),
}


def is_llamafactory(document: Mapping[str, Any]) -> bool:
    return any(
        key in document for key in ("finetuning_type", "stage", "cutoff_len", "infer_backend", "export_dir")
    ) or ("model_class" in document and "train_dataset" in document)


def from_llamafactory(document: Mapping[str, Any], folders: Folders, processes: int) -> Draft:
    """Raises ConfigError for a file that trains nothing, and for one of its version 1, whose keys are others."""
    if "model_class" in document or "train_dataset" in document:
        raise ConfigError(
            "this is a file of LLaMA-Factory's version 1, whose keys are others",
            found="model_class, train_dataset",
            remedy="write the recipe by hand (docs/migrating.md), or convert the file of version 0 that it came from",
        )
    if "stage" not in document and not document.get("do_train"):
        what, remedy = next((ENDS[key] for key in ENDS if key in document), ("trains nothing", "see docs/cli.md"))
        raise ConfigError(f"this file of LLaMA-Factory {what}", found="no `stage`", remedy=remedy)
    stage = str(document.get("stage", "sft"))
    if stage not in STAGES:
        raise ConfigError(
            f"LLaMA-Factory has no stage `{stage}`",
            found=stage,
            expected=f"one of {', '.join(STAGES)}",
            remedy="correct `stage` in the file",
        )
    method = STAGES[stage] if stage != "dpo" else LOSSES.get(str(document.get("pref_loss", "sigmoid")), "dpo")
    draft = Draft("LLaMA-Factory", method, flatten(document, LLAMAFACTORY), LLAMAFACTORY, processes)
    draft.said["stage"] = "method"
    if "model_name_or_path" in document:
        draft.put("/model", folders.of_model(str(document["model_name_or_path"])), "model_name_or_path")
    else:
        draft.miss("model_name_or_path", "the file names no model", f"write it in place of `{UNSAID}`")
        draft.put("/model", UNSAID)
    _read_objective(draft, stage)
    read_data(draft, folders, texts=stage == "pt")
    _read_batch(draft)
    read_length(draft, epochs="num_train_epochs", default=3.0)
    read_schedule(draft)
    read_optimizer(draft)
    read_precision(draft)
    read_sharding(draft)
    read_saving(draft)
    read_report_to(draft, wandb_project="wandb_project")
    _read_adapter(draft)
    _read_rows(draft, stage)
    draft.translate()
    draft.default("learning_rate", 5e-5)
    draft.default("max_length", 2048)
    draft.default("held_out", 0.0)
    return draft


def _read_objective(draft: Draft, stage: str) -> None:
    loss = draft.get("pref_loss", "sigmoid")
    if stage == "dpo":
        if str(loss) not in LOSSES:
            draft.miss("pref_loss", f"there is no loss `{loss}`", "`dpo` stands in: docs/objectives.md")
        elif "pref_loss" in draft.found:
            draft.said["pref_loss"] = "method"
        ftx, smoothing = draft.number("pref_ftx", 0), draft.number("dpo_label_smoothing", 0)
        if ftx and draft.method == "dpo":
            draft.method = "dpo_nll"
            draft.put("nll_weight", ftx, "pref_ftx")
        elif ftx:
            draft.miss("pref_ftx", f"`{draft.method}` has no such term", "`method: dpo_nll`, or `method: mix`")
        elif smoothing and draft.method == "dpo":
            draft.method = "cdpo"
            draft.put("label_smoothing", smoothing, "dpo_label_smoothing")
    for key in ("pref_loss", "pref_ftx", "dpo_label_smoothing"):
        draft.leave(key, "not of this stage, or 0")
    scale = draft.number("pref_beta", 0.1)
    if draft.takes("beta"):
        draft.put("beta", scale, "pref_beta")
    elif draft.takes("preference_weight"):
        draft.put("preference_weight", scale, "pref_beta")
    draft.leave("pref_beta", "not of this stage")
    if draft.method == "simpo":
        draft.put("gamma", draft.number("simpo_gamma", 0.5), "simpo_gamma")
    if draft.method == "ppo":
        _read_ppo(draft)


def _read_ppo(draft: Draft) -> None:
    judge = draft.get("reward_model")
    if judge is None:
        draft.miss("reward_model", "the file names no reward model", f"write it in place of `{UNSAID}`")
    draft.put("rewards", [{"kind": "reward_model", "model": str(judge or UNSAID)}], "reward_model")
    draft.miss(
        "ppo_epochs",
        f"{draft.number('ppo_epochs', 4):g} passes over a rollout there; `updates_per_rollout` counts updates",
        "posttrain takes one update, which stays on-policy; write `updates_per_rollout` for more",
    )
    draft.put("sampling.max_new_tokens", int(draft.number("max_new_tokens", 1024)), "max_new_tokens")


def _read_batch(draft: Draft) -> None:
    micro, times = "per_device_train_batch_size", "gradient_accumulation_steps"
    rows = read_step(draft, micro=micro, accumulation=times, micro_default=8)
    draft.leave(times, "not set")
    if draft.method == "ppo":
        draft.put("completions_per_prompt", 1, comment="one of each prompt there")
        prompts_per_step(draft, rows, 1, micro, times)
    for key in ("packing", "neat_packing"):
        if draft.truth(key):
            draft.miss(
                key,
                "a row of a micro-batch is there a bin of `cutoff_len` tokens, which holds several of your rows",
                "multiply `rows_per_step` by cutoff_len / (tokens by rows, which `posttrain check` counts)",
            )
        draft.leave(key, "off; rows lie end to end without padding anyway")


def _read_adapter(draft: Draft) -> None:
    kind = str(draft.get("finetuning_type", "lora"))
    adapters = [*LORA, *NO_ADAPTER]
    if kind == "full":
        draft.leave("finetuning_type", "all weights train")
        no_lora(draft, adapters)
    elif kind == "oft":
        draft.put("adapter.kind", "oft", "finetuning_type")
        draft.put("adapter.block_size", int(draft.number("oft_block_size", 32)), "oft_block_size")
        draft.put("adapter.targets", _targets(draft.get("oft_target", "all")), "oft_target")
        no_lora(draft, adapters)
    elif kind == "lora":
        rank = draft.number("lora_rank", 8)
        bits = draft.has("quantization_bit")
        read_lora(draft, kind="qlora" if bits else "lora", rank=int(rank), alpha=None, rank_key="lora_rank")
        if bits:
            draft.put("adapter.bits", int(draft.number("quantization_bit")), "quantization_bit")
        draft.put("adapter.targets", _targets(draft.get("lora_target", "all")), "lora_target")
    else:
        draft.miss(
            "finetuning_type", f"`{kind}` trains some layers in full", "train all weights, as written, or use `adapter`"
        )
        no_lora(draft, adapters)
    if "adapter_name_or_path" in draft.found and draft.has("adapter_name_or_path"):
        draft.miss(
            "adapter_name_or_path",
            "the run begins from an adapter of a stage before",
            "name that adapter's folder as `model`, with `adapter: {kind: continue}`, or make the two one recipe",
        )


def _targets(value: Any) -> str | list[str]:
    names = [name.strip() for name in str(value).split(",")] if not isinstance(value, list) else value
    return "all-linear" if names in (["all"], ["all-linear"]) else names


def _read_rows(draft: Draft, stage: str) -> None:
    draft.put("max_length", int(draft.number("cutoff_len", 2048)), "cutoff_len")
    if stage == "pt":
        draft.put("encoding.template", "raw", comment="bare texts")
        draft.put("encoding.truncation", "split", comment="texts are cut into pieces, as there")
        draft.leave("template", "bare texts have no template")
    else:
        draft.put("encoding.template", "chat", "template")
        if draft.method != "ppo":
            draft.put("encoding.truncation", "cut_response", comment="`cutoff_len` cuts rows")
            draft.assume(
                "hardly any row is longer than `max_length`: there prompt and answer are cut, each by its share, "
                "and here the answer is; `posttrain check` counts them."
            )
        name = draft.get("template")
        if name is not None:
            draft.assume(
                f"the model's own chat template is the one that LLaMA-Factory calls `{name}`; `posttrain check` "
                "shows the first row. A base model has none: write `encoding: {template: chatml}`."
            )
    on_all, last = draft.has("train_on_prompt"), draft.has("mask_history")
    if on_all and draft.method == "sft":
        draft.put("encoding.train_on", "all", "train_on_prompt")
    elif last and draft.method == "sft":
        draft.put("encoding.train_on", "last_assistant", "mask_history")
    for key in ("train_on_prompt", "mask_history", "template"):
        draft.leave(key, "answers alone train, as here")
    share = draft.number("val_size", 0)
    if draft.has("eval_dataset"):
        draft.leave("val_size", "`eval_dataset` is measured on")
    elif share >= 1:
        draft.miss(
            "val_size", f"{share:g} rows", "`held_out` takes a share: divide by the number of rows; 0.05 stands in"
        )
    else:
        draft.put("held_out", share, "val_size")
