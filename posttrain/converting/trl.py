"""TRL's configurations as a recipe: `DPOConfig(...).to_json_string()`, a YAML of its command line, or `training_args`
as JSON.

Read from TRL 1.9 (July 2026). The losses of DPO are sums over tokens but for `ipo` and `sigmoid_norm`, as in
posttrain's rows of those names; `sft` trains every token of conversations unless `assistant_only_loss` is set, and
the completion alone of rows with `prompt` and `completion`; the scheduler is linear without a warm-up; nothing is
held out without `eval_strategy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.converting.draft import Draft, flatten
from posttrain.converting.entry import empty, number
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
from posttrain.converting.online import prompts_per_step, read_grpo
from posttrain.converting.rows import Folders, Rows, address, put_rows, split_of
from posttrain.converting.trackers import read_report_to
from posttrain.converting.trl_keys import TRL
from posttrain.errors import ConfigError, unknown

METHODS = {
    "sft": "sft", "dpo": "dpo", "kto": "kto", "bco": "bco", "orpo": "orpo", "cpo": "cpo", "reward": "reward",
    "prm": "reward", "grpo": "grpo", "rloo": "rloo", "gkd": "gkd",
}  # fmt: skip
"""TRL's trainers, and the method here."""
RATES = {
    "sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "bco": 5e-7, "orpo": 1e-6, "cpo": 1e-6, "reward": 1e-4, "prm": 1e-5,
    "grpo": 1e-6, "rloo": 1e-6, "gkd": 2e-5,
}  # fmt: skip
"""Their learning rates, where a file says none."""
MARKS = (
    ("grpo", ("scale_rewards", "num_iterations", "mask_truncated_completions")),
    ("rloo", ("normalize_advantages", "reward_clip_range")),
    ("kto", ("desirable_weight",)),
    ("bco", ("min_density_ratio", "prompt_sample_size")),
    ("cpo", ("cpo_alpha", "simpo_gamma")),
    ("gkd", ("lmbda", "seq_kd")),
    ("prm", ("train_on_last_step_only",)),
    (
        "dpo",
        ("f_divergence_type", "loss_weights", "ld_alpha", "use_weighting", "rpo_alpha", "precompute_ref_log_probs"),
    ),
    ("reward", ("center_rewards_coefficient",)),
    ("sft", ("completion_only_loss", "assistant_only_loss", "dataset_text_field", "eval_packing", "packing")),
    ("grpo", ("num_generations", "reward_funcs")),
)
"""Keys that only one trainer has, in the order in which they are looked for."""
LOSSES = {"sigmoid": "dpo", "sigmoid_norm": "dpo_norm"}
"""`loss_type` of DPO, where our method has another name."""
DIVERGENCES = {"forward_kl": "dpo_forward_kl", "js_divergence": "dpo_js", "alpha_divergence": "dpo_alpha"}


def is_trl(document: Mapping[str, Any]) -> bool:
    marks = (
        "per_device_train_batch_size",
        "model_name_or_path",
        "dataset_name",
        "num_train_epochs",
        "lr_scheduler_type",
    )
    return any(key in document for key in (*marks, *(key for _, keys in MARKS for key in keys)))


def method_of(document: Mapping[str, Any], stem: str) -> str | None:
    """The trainer, by keys that only it has, else by the file's name: method_of({}, "dpo_config") -> "dpo"."""
    words = stem.lower().replace("-", "_").replace(".", "_").split("_")
    # First the name, where it says one: a DPOConfig of an older TRL has keys of many trainers.
    named = next((name for name in METHODS if name in words), None)
    return named or next((name for name, keys in MARKS if any(key in document for key in keys)), None)


def from_trl(document: Mapping[str, Any], folders: Folders, processes: int, trainer: str | None) -> Draft:
    """Raises ConfigError where nothing says which trainer the configuration is of."""
    if trainer is None:
        raise ConfigError(
            "nothing in this file says what TRL trains with it",
            found=", ".join(list(document)[:6]),
            expected=f"one of {', '.join(METHODS)}",
            remedy="say it: `posttrain convert FILE --method sft`",
        )
    if trainer not in METHODS:
        raise unknown("trainer of TRL", trainer, METHODS)
    draft = Draft("TRL", METHODS[trainer], flatten(document, TRL), TRL, processes)
    _read_model(draft, folders)
    _read_data(draft, folders)
    _read_objective(draft, trainer)
    _read_batch(draft, online=trainer in ("grpo", "rloo", "gkd"))
    read_length(draft, epochs="num_train_epochs", default=3.0)
    read_schedule(draft)
    read_optimizer(draft)
    read_precision(draft)
    read_sharding(draft)
    read_saving(draft)
    read_report_to(draft)
    _read_adapter(draft)
    if trainer == "sft":
        _read_sft(draft)
    draft.translate()
    draft.default("learning_rate", RATES[trainer])
    if trainer not in ("grpo", "rloo", "gkd"):
        draft.default("max_length", 1024)
    return draft


def _read_model(draft: Draft, folders: Folders) -> None:
    name = draft.get("model_name_or_path")
    if name is None:
        draft.miss(
            "model_name_or_path",
            "TRL's config names no model: it is passed in Python",
            f"write it in place of `{UNSAID}`",
        )
    draft.put("/model", UNSAID if name is None else folders.of_model(str(name)), "model_name_or_path")
    if name is None:
        draft.said.pop("model_name_or_path", None)


def _read_data(draft: Draft, folders: Folders) -> None:
    sets: list[Rows] = []
    mixture = draft.get("datasets", [])
    if isinstance(mixture, Sequence) and not isinstance(mixture, str) and mixture:
        for place, one in enumerate(mixture):
            rows = Rows(address(folders, str(one.get("path")), one.get("name"), one.get("data_files")))
            split_of(draft, rows, f"datasets[{place}].split", one.get("split"))
            sets.append(rows)
            for key, value in one.items():
                if key not in ("path", "name", "data_files", "split") and not empty(value):
                    draft.miss(f"datasets[{place}].{key}", "no key of `data` does that", "see docs/data.md")
    elif draft.has("dataset_name"):
        rows = Rows(address(folders, str(draft.get("dataset_name")), draft.get("dataset_config")))
        split_of(draft, rows, "dataset_train_split", draft.get("dataset_train_split"))
        sets.append(rows)
    if sets:
        put_rows(draft, sets, "datasets", "dataset_name", "dataset_config", "dataset_train_split")
    else:
        draft.miss(
            "dataset_name",
            "TRL's config names no rows: they are passed in Python",
            f"write a file in place of `{UNSAID}`",
        )
        draft.put("data", UNSAID)
    strategy = str(draft.get("eval_strategy", draft.get("evaluation_strategy", "no"))).lower()
    if strategy in ("no", "none", "false") or not sets:
        draft.put("held_out", 0.0, "eval_strategy", "evaluation_strategy", comment="nothing is held out there")
    else:
        held = Rows(sets[0].path, split=str(draft.get("dataset_test_split", "test")))
        put_rows(draft, [held], "eval_strategy", "evaluation_strategy", "dataset_test_split", key="held_out")
    draft.leave("dataset_test_split", "nothing is held out")
    for key in ("datasets", "dataset_name", "dataset_config", "dataset_train_split"):
        draft.leave(key, "not set")


def _read_objective(draft: Draft, trainer: str) -> None:
    if trainer == "dpo":
        _read_dpo(draft)
    elif trainer == "grpo":
        read_grpo(draft)
    elif trainer == "rloo":
        read_grpo(draft, default_loss="grpo")
        draft.put("kl_beta", draft.number("beta", 0.05), "beta")
    elif trainer == "cpo":
        _read_cpo(draft)
    elif trainer == "prm":
        draft.put("head", {"kind": "steps", "mark": str(draft.get("step_separator", "\n"))}, "step_separator")
        draft.put("objective", {"kind": "step_labels"})
    elif trainer == "gkd":
        teacher = draft.get("teacher_model_name_or_path")
        draft.put("teacher", str(teacher or UNSAID), "teacher_model_name_or_path")
        draft.put("beta", draft.number("beta", 0.5), "beta")
        share = draft.number("lmbda", 0.5)
        if share < 1:
            draft.miss(
                "lmbda",
                f"a share of {1 - share:g} of the batches is taken from the rows there; here the policy samples all",
                "`method: distil_sft` as a stage before trains on the rows",
            )
        draft.leave("lmbda", "all is sampled by the policy, as here")
    elif trainer == "reward" and draft.has("center_rewards_coefficient"):
        draft.put("objective.kind", "bradley_terry", "center_rewards_coefficient")
        draft.put("objective.centre", draft.number("center_rewards_coefficient"), "center_rewards_coefficient")
    elif trainer == "orpo":
        draft.put("preference_weight", draft.number("beta", 0.1), "beta")
    elif draft.takes("beta"):
        draft.put("beta", draft.number("beta", 0.1), "beta")
    if (
        "loss_type" in draft.found
        and trainer in ("kto", "sft")
        and str(draft.get("loss_type")) not in ("kto", "nll", "chunked_nll", "None")
    ):
        draft.miss(
            "loss_type",
            f"`{draft.get('loss_type')}` is no loss of `{draft.method}`",
            "docs/objectives.md has the methods",
        )
    for key in ("loss_type", "beta"):
        draft.leave(key, "said by `method`")


def _read_dpo(draft: Draft) -> None:
    kinds = draft.get("loss_type", ["sigmoid"])
    kinds = [str(kind) for kind in (kinds if isinstance(kinds, Sequence) and not isinstance(kinds, str) else [kinds])]
    weights = [number(weight) for weight in draft.get("loss_weights") or [1.0] * len(kinds)]
    beta = draft.number("beta", 0.1)
    if len(kinds) == 2 and kinds == ["sigmoid", "sft"] and weights[0] == 1:
        draft.method = "dpo_nll"
        draft.put("nll_weight", weights[1], "loss_weights", "loss_type")
        draft.assume(
            "the chosen answers' likelihood is a mean over all tokens of the batch there, and a mean of each "
            "answer's here."
        )
    elif len(kinds) > 1:
        draft.method = "mix"
        terms = [_term(kind, weight, beta) for kind, weight in zip(kinds, weights, strict=False)]
        draft.put("losses", terms, "loss_type", "loss_weights", "beta")
        return
    else:
        _one_loss(draft, kinds[0])
    if draft.has("rpo_alpha") and draft.method == "dpo":
        draft.method = "dpo_nll"
        draft.put("nll_weight", draft.number("rpo_alpha"), "rpo_alpha")
    if draft.takes("beta"):
        draft.put("beta", beta, "beta")
    draft.leave("loss_weights", "one loss has no weights")


def _term(kind: str, weight: float, beta: float) -> dict[str, Any]:
    if kind == "sft":
        return {"loss": "sft", "weight": weight}
    return {"loss": LOSSES.get(kind, kind), "weight": weight, "parameters": {"beta": beta}}


def _one_loss(draft: Draft, kind: str) -> None:
    from posttrain.config.stages import PREFERENCES

    smoothing = draft.number("label_smoothing", 0)
    divergence = DIVERGENCES.get(
        str(draft.get("f_divergence_type", "reverse_kl")).removeprefix("FDivergenceType.").lower()
    )
    method = LOSSES.get(kind, kind)
    if kind == "sigmoid" and divergence:
        method = divergence
        draft.said["f_divergence_type"] = "method"
    elif kind == "sigmoid" and draft.has("ld_alpha"):
        method = "ld_dpo"
    elif kind == "sigmoid" and draft.has("use_weighting"):
        method = "wpo"
        draft.said["use_weighting"] = "method"
    elif kind == "sigmoid" and smoothing:
        method = "cdpo"
    if method not in PREFERENCES:
        draft.miss("loss_type", f"there is no loss `{kind}`", "`dpo` stands in: docs/objectives.md")
        method = "dpo"
    elif "loss_type" in draft.found:
        draft.said["loss_type"] = "method"
    draft.method = method
    places = {
        "label_smoothing": ("label_epsilon" if method == "exo_pair" else "label_smoothing", smoothing or None),
        "ld_alpha": ("tail_weight", draft.get("ld_alpha")),
        "discopop_tau": ("tau", draft.get("discopop_tau")),
        "f_alpha_divergence_coef": ("divergence_alpha", draft.get("f_alpha_divergence_coef")),
    }
    for key, (here, value) in places.items():
        if value is not None and draft.takes(here):
            draft.put(here, number(value), key)
        elif key == "label_smoothing" and smoothing:
            draft.miss(key, f"`{method}` has no smoothing", "`method: cdpo`, or `robust`")
        draft.leave(key, f"`{method}` does not have it, or it is 0")
    draft.leave("f_divergence_type", "reverse KL, as in DPO")


def _read_cpo(draft: Draft) -> None:
    loss, alpha = str(draft.get("loss_type", "sigmoid")), draft.number("cpo_alpha", 1.0)
    if loss == "simpo":
        draft.method = "cpo_simpo" if alpha else "simpo"
        draft.put("gamma", draft.number("simpo_gamma", 0.5), "simpo_gamma")
        draft.said["loss_type"] = "method"
    elif loss != "sigmoid":
        draft.miss("loss_type", f"CPO has no loss `{loss}` here", "`cpo`, the logistic one, stands in")
    if draft.takes("nll_weight"):
        draft.put("nll_weight", alpha, "cpo_alpha")
    draft.put("beta", draft.number("beta", 0.1), "beta")
    for key in ("simpo_gamma", "cpo_alpha", "loss_type"):
        draft.leave(key, "said by `method`")


def _read_batch(draft: Draft, *, online: bool) -> None:
    micro, times = "per_device_train_batch_size", "gradient_accumulation_steps"
    rows = read_step(draft, micro=micro, accumulation=times, micro_default=8)
    draft.leave(times, "not set")
    if not online:
        return
    update = rows
    steps = draft.number("steps_per_generation", 0)
    drawn = int(draft.number("generation_batch_size", 0)) or int(steps * rows // draft.number(times, 1)) or rows
    group = 1 if draft.method == "gkd" else int(draft.number("num_generations", 2 if draft.method == "rloo" else 8))
    prompts_per_step(draft, drawn, group, micro, times, "generation_batch_size", "steps_per_generation")
    updates = int(draft.number("num_iterations", 1)) * max(1, drawn // update)
    if updates > 1:
        draft.put("updates_per_rollout", updates, "num_iterations")
    if drawn > update and update % group == 0:
        draft.put("prompts_per_update", update // group, comment=f"{update} completions of one update / {group}")
    draft.leave("num_iterations", "one update of a rollout, as here")


def _read_adapter(draft: Draft) -> None:
    quantised = draft.has("load_in_4bit") or draft.has("load_in_8bit")
    if not (draft.truth("use_peft")):
        draft.leave("use_peft", "all weights train")
        no_lora(draft, [*LORA, "use_dora", "use_rslora"])
        return
    read_lora(draft, kind="qlora" if quantised else "lora", rank=16, alpha=32, dropout=0.05)
    names = draft.get("lora_target_modules")
    if names in ("all-linear", ["all-linear"]):
        draft.put("adapter.targets", "all-linear", "lora_target_modules")
    elif names is not None:
        draft.put("adapter.targets", names, "lora_target_modules")
    else:
        draft.miss(
            "lora_target_modules",
            "without it `peft` chooses layers by architecture (often queries and values alone)",
            "`all-linear`, posttrain's default, adapts more; list module names in `adapter.targets` for the same",
        )


def _read_sft(draft: Draft) -> None:
    if draft.truth("assistant_only_loss"):
        draft.put("encoding.train_on", "assistant_only", "assistant_only_loss")
    elif draft.truth("completion_only_loss"):
        draft.put("encoding.train_on", "completion_only", "completion_only_loss")
    else:
        draft.miss(
            "assistant_only_loss",
            "without it every token of a conversation trains there (of `prompt` and `completion`, the "
            "completion); here the "
            "assistant's turns do",
            "for the same on conversations write `encoding: {train_on: all}`",
        )
    for key in ("assistant_only_loss", "completion_only_loss"):
        draft.leave(key, "not set")
    if draft.truth("packing"):
        draft.miss(
            "packing",
            "a row of a micro-batch is there a bin of `max_length` tokens, which holds several of your rows",
            "multiply `rows_per_step` by max_length / (tokens by rows, which `posttrain check` counts)",
        )
    draft.leave("packing", "off; rows lie end to end without padding anyway")
    draft.default("encoding.truncation", "cut_response", "rows are cut, not left out")
