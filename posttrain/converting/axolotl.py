"""Axolotl's YAML as a recipe; the table holds every key of its examples and schema that this version knows.

Semantics read from its source (0.13, July 2026): `micro_batch_size` counts rows of one process, or bins of
`sequence_len` tokens under `sample_packing`; rows beyond `sequence_len` are dropped unless `excess_length_strategy`
says otherwise; the warm-up is 3 % of the steps where nothing is written; the adapter's scale is alpha / rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.converting.axolotl_keys import AXOLOTL, NO_ADAPTER
from posttrain.converting.axolotl_rows import read_data
from posttrain.converting.draft import Draft, flatten
from posttrain.converting.entry import empty, number, truth
from posttrain.converting.huggingface import (
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
from posttrain.converting.online import read_grpo
from posttrain.converting.rows import Folders
from posttrain.converting.trackers import read_axolotl_trackers

METHODS = {"dpo": "dpo", "ipo": "ipo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo"}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "sigmoid_norm": "dpo_norm"}
"""`dpo_loss_type`, where our method has another name."""


def is_axolotl(document: Mapping[str, Any]) -> bool:
    return "base_model" in document and ("sequence_len" in document or "micro_batch_size" in document)


def from_axolotl(document: Mapping[str, Any], folders: Folders, processes: int) -> Draft:
    """Raises ConfigError where it trains by a method that posttrain does not have at all."""
    method = _method(document)
    draft = Draft("Axolotl", method, flatten(document, AXOLOTL), AXOLOTL, processes)
    _read_objective(draft)
    draft.put("/model", folders.of_model(str(draft.get("base_model"))), "base_model")
    read_data(draft, folders)
    _read_batch(draft, online=method in ("grpo", "dr_grpo", "cispo", "sapo"))
    read_length(draft, epochs="num_epochs", default=1.0)
    _read_schedule(draft)
    read_optimizer(draft, kind="optimizer")
    read_precision(draft)
    read_sharding(draft)
    read_saving(draft)
    read_axolotl_trackers(draft)
    _read_lengths(draft)
    _read_adapter(draft)
    _read_template(draft)
    draft.translate()
    draft.default("max_length", 512)
    return draft


def _method(document: Mapping[str, Any]) -> str:
    if truth(document.get("reward_model") or False) or truth(document.get("process_reward_model") or False):
        return "reward"
    rl = document.get("rl")
    if empty(rl):
        return "sft"
    # What is none of them is listed as missed; demonstrations stand in, for the rest of the file has a meaning.
    return METHODS.get(str(rl), "grpo" if document.get("trl") else "sft")


def _read_objective(draft: Draft) -> None:
    rl = draft.get("rl")
    if rl is not None and str(rl) not in METHODS:
        draft.miss(
            "rl", f"there is no method `{rl}` here", f"`{draft.method}` stands in; docs/online.md has the methods"
        )
    elif rl is not None:
        draft.said["rl"] = "method"
    for key in ("reward_model", "process_reward_model"):
        if draft.has(key):
            draft.said[key] = "method"
    if draft.method == "reward" and draft.number("num_labels", 1) == (2 if draft.has("process_reward_model") else 1):
        draft.leave("num_labels", "as many as the head of a reward model has")
    if draft.has("process_reward_model"):
        draft.put("head", {"kind": "steps"}, "process_reward_model")
        draft.put("objective", {"kind": "step_labels"}, "process_reward_model")
    elif draft.has("center_rewards_coefficient"):
        draft.put("objective.kind", "bradley_terry", "center_rewards_coefficient")
        draft.put("objective.centre", draft.number("center_rewards_coefficient"), "center_rewards_coefficient")
    if draft.method == "dpo":
        _read_dpo(draft)
    if draft.method == "grpo":
        read_grpo(draft, prefix="trl.", default_loss="dapo")
    elif draft.has("rl_beta"):
        draft.put("preference_weight" if draft.method == "orpo" else "beta", draft.number("rl_beta"), "rl_beta")
    if draft.method == "orpo" and draft.has("orpo_alpha"):
        draft.put("preference_weight", draft.number("orpo_alpha"), "orpo_alpha")
    if draft.method == "simpo":
        draft.default("beta", 0.1)
        draft.default("gamma", 0.5)
        if draft.has("cpo_alpha"):
            draft.method = "cpo_simpo"
            draft.put("nll_weight", draft.number("cpo_alpha"), "cpo_alpha")
    elif draft.takes("beta") and draft.method != "grpo":
        draft.default("beta", 0.1)


def _read_dpo(draft: Draft) -> None:
    kinds = draft.get("dpo_loss_type", ["sigmoid"])
    kinds = [str(kind) for kind in kinds] if isinstance(kinds, list) else [str(kinds)]
    if len(kinds) > 1:
        weights = [number(weight) for weight in draft.get("dpo_loss_weights", [1.0] * len(kinds))]
        draft.method = "mix"
        terms = [
            {"loss": LOSSES.get(kind, kind), "weight": weight} for kind, weight in zip(kinds, weights, strict=False)
        ]
        draft.put("losses", terms, "dpo_loss_type", "dpo_loss_weights")
        return
    draft.method = LOSSES.get(kinds[0], kinds[0])
    if "dpo_loss_type" in draft.found:
        draft.said["dpo_loss_type"] = "method"
    draft.leave("dpo_loss_weights", "one loss has no weights")
    smoothing = draft.number("dpo_label_smoothing", 0)
    if draft.has("dpo_use_weighting") and draft.method == "dpo":
        draft.method = "wpo"
        draft.said["dpo_use_weighting"] = "method"
    elif smoothing and draft.method == "dpo":
        draft.method = "cdpo"
        draft.put("label_smoothing", smoothing, "dpo_label_smoothing")


def _read_batch(draft: Draft, *, online: bool) -> None:
    total = draft.number("batch_size", 0)
    micro = draft.number("micro_batch_size", 1)
    if total >= 1 and not draft.has("gradient_accumulation_steps"):
        # Its old name for the rows of one process's step.
        rows = int(total) * draft.processes
        draft.put("rows_per_step", rows, "batch_size", "micro_batch_size")
    else:
        rows = read_step(draft, micro="micro_batch_size", accumulation="gradient_accumulation_steps", micro_default=1)
    draft.leave("gradient_accumulation_steps", "not set")
    if online:
        group = int(draft.number("trl.num_generations", 8))
        draft.put("prompts_per_step", max(1, rows // group), "micro_batch_size", "gradient_accumulation_steps")
        if rows % group:
            draft.miss(
                "micro_batch_size", f"{rows} completions are no whole groups of {group}", "see `prompts_per_step`"
            )
        return
    if draft.has("sample_packing") and draft.method == "sft":
        length = int(draft.number("sequence_len", 512))
        draft.miss(
            "sample_packing",
            f"a row of a micro-batch is there a bin of {length:,} tokens, which holds several of your rows; "
            f"`rows_per_step: {draft.lines['rows_per_step'].value}` counts rows of the file ({micro:g} bins a "
            f"micro-batch)",
            f"multiply `rows_per_step` by {length:,} / (tokens by rows, which `posttrain check` counts)",
        )


def _read_schedule(draft: Draft) -> None:
    # 3 % where nothing is written, at most 100 steps.
    read_schedule(draft, kind="lr_scheduler", default="cosine", warmup=0.03)
    if draft.has("cosine_min_lr_ratio"):
        draft.put("schedule.final_ratio", draft.number("cosine_min_lr_ratio"), "cosine_min_lr_ratio")
    if draft.has("eta_min") and draft.has("learning_rate"):
        share = draft.number("eta_min") / draft.number("learning_rate")
        draft.put("schedule.final_ratio", round(share, 6), "eta_min")


def _read_lengths(draft: Draft) -> None:
    strategy = str(draft.get("excess_length_strategy", "drop"))
    if strategy == "truncate":
        draft.put("encoding.truncation", "cut_response", "excess_length_strategy")
    elif strategy == "raise":
        draft.miss("excess_length_strategy", "rows that are too long are dropped and counted", "read the count")
    draft.leave("excess_length_strategy", "rows that are too long are dropped and counted")
    share = draft.number("val_set_size", 0)
    if draft.has("test_datasets"):
        draft.leave("val_set_size", "`test_datasets` is measured on")
    elif share >= 1:
        draft.miss(
            "val_set_size", f"{share:g} rows", "`held_out` takes a share: divide by the number of rows; 0.05 stands in"
        )
    else:
        draft.put("held_out", share, "val_set_size")
        draft.default("held_out", 0.0)
        draft.leave("val_set_size", "nothing is held out")


def _read_adapter(draft: Draft) -> None:
    kind = str(draft.get("adapter", "none")).lower()
    if kind not in ("lora", "qlora"):
        if kind != "none":
            draft.miss("adapter", f"there is no adapter `{kind}` that this translates", "see docs/adapters.md")
        draft.leave("adapter", "all weights train")
        no_lora(draft, NO_ADAPTER)
        return
    for key in ("lora_r", "lora_alpha"):
        if not draft.has(key):
            draft.miss(key, "an adapter needs it, and the file does not say it", "`peft`'s own 8 stands in")
    read_lora(draft, kind=kind, rank=8, alpha=8)
    names = draft.get("lora_target_modules")
    if draft.has("lora_target_linear") or names in ("all-linear", ["all-linear"]):
        draft.put("adapter.targets", "all-linear", "lora_target_linear", "lora_target_modules")
    elif names is not None:
        draft.put("adapter.targets", names, "lora_target_modules")
    else:
        draft.miss(
            "lora_target_modules",
            "without it `peft` chooses layers by architecture (often queries and values alone)",
            "`all-linear`, posttrain's default, adapts more; list module names in `adapter.targets` for the same",
        )
    draft.leave("lora_target_linear", "off")
    draft.leave("lora_target_modules", "`lora_target_linear` wins over it")


def _read_template(draft: Draft) -> None:
    name = draft.get("chat_template")
    if "encoding.template" in draft.lines:  # of bare texts
        draft.leave("chat_template", "bare texts have no template")
    elif name == "chatml":
        draft.put("encoding.template", "chatml", "chat_template")
    elif name == "jinja" or draft.has("chat_template_jinja"):
        draft.miss("chat_template", "the template stands in the file", "save it, and name it in `encoding.template`")
    elif name is not None:
        draft.put("encoding.template", "chat", "chat_template")
        if not str(name).startswith("tokenizer_default"):
            draft.assume(
                f"the model's own chat template is the one that Axolotl calls `{name}`; `posttrain check` shows "
                f"the first row."
            )
    for key in ("chat_template", "chat_template_jinja"):
        draft.leave(key, "the model's own template")
    if draft.method != "sft" or "encoding.train_on" in draft.lines:
        draft.leave("train_on_inputs", "answers alone train")
    elif draft.has("train_on_inputs"):
        draft.put("encoding.train_on", "all", "train_on_inputs")
    draft.leave("train_on_inputs", "answers alone train, as here")
