"""A script that starts OpenRLHF as a recipe: its command line is its configuration.

Read from OpenRLHF 0.10 (August 2026), whose options have groups (`--train.batch_size`); the flat names of older
versions (`--train_batch_size`) are known too. `train.batch_size` counts the rows of all processes; IPO takes the sum
over tokens; the schedule is a cosine down to a tenth, after 3 % of warm-up; of PPO, `train.batch_size` counts
completions of one update."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.converting.draft import Draft
from posttrain.converting.entry import number
from posttrain.converting.huggingface import SCHEDULES, UNSAID
from posttrain.converting.openrlhf_keys import OLD_NAMES, OPENRLHF
from posttrain.converting.openrlhf_rl import read_rl
from posttrain.converting.rows import Folders, Rows, put_rows, renamed
from posttrain.converting.trackers import read_openrlhf_trackers
from posttrain.errors import ConfigError

TRAINERS = {"train_sft": "sft", "train_dpo": "dpo", "train_rm": "reward", "train_kto": "kto", "train_ppo_ray": "ppo"}
RATES = {"sft": 5e-6, "dpo": 1e-5, "reward": 9e-6, "kto": 5e-7, "ppo": 1e-6}
LENGTHS = {"sft": 2048, "dpo": 512, "reward": 512, "kto": 2048, "ppo": 2048}
_TRAINER = re.compile(r"openrlhf[./]cli[./](train_[a-z_]+?)(?:\.py)?(?=\s|$)")
_VARIABLE = re.compile(
    r"^\s*(?:export\s+)?([A-Z_a-z][A-Za-z_0-9]*)=(\"[^\"$]*\"|'[^']*'|[^\s\"'$;]+)\s*$", re.MULTILINE
)
_ENDS = ("EOF", "END", "&&", "||", ";", "|", ">", ">>", "&>", "if", "fi")


def arguments_in(text: str, path: Path) -> dict[str, Any]:
    """The options of the first command that starts a trainer: {"trainer": "train_dpo", "train.batch_size": "256"}.

    Raises:
        ConfigError: no trainer of OpenRLHF is started there, or the shell's quotes are not closed.
    """
    start = _TRAINER.search(text)
    if start is None:
        raise ConfigError(
            "this script starts no trainer of OpenRLHF",
            where=path,
            expected=f"`openrlhf.cli.` and one of {', '.join(TRAINERS)}, with its options",
            remedy="name the file that holds the command line",
        )
    found: dict[str, Any] = {"trainer": start[1]}
    variables = {name: value.strip("\"'") for name, value in _VARIABLE.findall(text[: start.start()])}
    key: str | None = None
    for written in _words(text[start.end() :], path):
        word = re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], match[0]), written)
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            key = OLD_NAMES.get(start[1], {}).get(name, OLD_NAMES[""].get(name, name))
            found[key] = value or True
        elif key is not None:
            found[key] = word if found[key] is True else [*_listed(found[key]), word]
    return found


def _words(text: str, path: Path) -> Iterator[str]:
    # Up to the first line that a backslash does not continue: what follows is another command.
    lines = []
    for line in text.split("\n"):
        lines.append(line.rstrip().removesuffix("\\"))
        if line.strip() and not line.rstrip().endswith("\\"):
            break
    command = " ".join(line.strip() for line in lines if not line.strip().startswith("#"))
    # Inside of `bash -c "..."` the command begins before the trainer, and its closing quote is left.
    if command.count('"') % 2:
        command = command[::-1].replace('"', "", 1)[::-1]
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(
            "the command line's quotes are not closed", where=path, found=str(error), remedy="mend the script"
        ) from None
    for word in words:
        if word in _ENDS:
            return
        yield word.rstrip('"')


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def from_openrlhf(document: Mapping[str, Any], folders: Folders, processes: int, method: str | None) -> Draft:
    """Raises ConfigError for a trainer that posttrain has no method for."""
    trainer = str(document["trainer"])
    if trainer not in TRAINERS:
        raise ConfigError(
            f"there is no method for OpenRLHF's `{trainer}`",
            found=trainer,
            expected=f"one of {', '.join(TRAINERS)}",
            remedy="see docs/recipes.md for the methods there are",
        )
    draft = Draft("OpenRLHF", TRAINERS[trainer], document, OPENRLHF, processes)
    draft.said["trainer"] = "method"
    online = trainer == "train_ppo_ray"
    prefix = "actor" if online else "model"
    model = draft.get(f"{prefix}.model_name_or_path")
    draft.put("/model", folders.of_model(str(model)) if model else UNSAID, f"{prefix}.model_name_or_path")
    _read_data(draft, folders, online=online)
    kind = draft.method
    if online:
        read_rl(draft)
    else:
        _read_loss(draft)
        draft.put("rows_per_step", int(draft.number("train.batch_size", 128)), "train.batch_size")
        draft.leave("train.micro_batch_size", "micro-batches are filled by themselves")
        epochs = draft.number("train.max_epochs", 2 if kind == "sft" else 1)
        draft.put("epochs", epochs, "train.max_epochs")
    _read_optimizer(draft, "actor." if online else "", RATES[kind])
    _read_adapter(draft)
    _read_machine(draft)
    read_openrlhf_trackers(draft)
    _read_text(draft, online=online, length=LENGTHS[kind])
    draft.translate()
    variables = sorted(key for key, value in document.items() if "$" in str(value))
    if variables:
        draft.assume(f"what the shell puts into {', '.join(variables)} is written in by hand: `$` means nothing here.")
    return draft


def _read_data(draft: Draft, folders: Folders, *, online: bool) -> None:
    key = "data.prompt_dataset" if online else "data.dataset"
    share_key = "data.prompt_probs" if online else "data.dataset_probs"
    names = [name for name in str(draft.get(key) or "").split(",") if name]
    shares = [number(share) for share in str(draft.get(share_key) or "").split(",") if share]
    columns = {}
    for ours, theirs in (
        ("prompt", "data.prompt_key"), ("chosen", "data.chosen_key"), ("rejected", "data.rejected_key"),
        ("answer", "data.label_key"),
    ):  # fmt: skip
        value = draft.get(theirs)
        if value is not None:
            if value != ours:
                columns[ours] = str(value)
            draft.said[theirs] = "data.columns"
    asked = str(draft.get("data.input_key", "input"))
    answer = draft.get("data.output_key")
    if online:
        columns.update(renamed({"prompt": asked}))
    elif draft.method == "sft" and answer is not None:
        columns.update(renamed({"prompt": asked, "completion": str(answer)}))
    elif draft.method == "sft" and asked not in ("messages", "conversations", "conversation"):
        columns["messages"] = asked
    for name in ("data.input_key", "data.output_key"):
        if name in draft.found:
            draft.said[name] = "data.columns"
    split = str(draft.get("data.prompt_split" if online else "data.dataset_split", "train"))
    sets = [Rows(folders.local(name) or name, split=split, columns=dict(columns)) for name in names]
    if len(shares) == len(sets):
        for rows, share in zip(sets, shares, strict=True):
            rows.weight = share if len(sets) > 1 else None
    limit = draft.number("data.max_samples", 1e8)
    if limit < 1e6 and "data.max_samples" in draft.found:
        for rows in sets:
            rows.limit = int(limit)
        draft.said["data.max_samples"] = "data.limit"
    if not sets:
        draft.miss(key, "the command line names no rows", f"write a file in place of `{UNSAID}`")
        sets = [Rows(UNSAID)]
    put_rows(draft, sets, key, share_key, "data.dataset_split", "data.prompt_split")
    held = draft.get("eval.dataset")
    if held is not None:
        rows = Rows(folders.local(str(held)) or str(held), split=str(draft.get("eval.split", "train")), columns=columns)
        put_rows(draft, [rows], "eval.dataset", "eval.split", key="held_out")
    else:
        draft.default("held_out", 0.0)
    for name in (
        share_key,
        "data.max_samples",
        "eval.dataset",
        "eval.split",
        "data.dataset_split",
        "data.prompt_split",
    ):
        draft.leave(name, "not set")


def _read_loss(draft: Draft) -> None:
    if draft.method == "dpo":
        smoothing, nll = draft.number("model.label_smoothing", 0), draft.number("model.nll_loss_coef", 0)
        if draft.has("model.ipo_enable"):
            draft.method = "ipo_sum"
            draft.said["model.ipo_enable"] = "method"
        elif nll:
            draft.method = "dpo_nll"
            draft.put("nll_weight", nll, "model.nll_loss_coef")
        elif smoothing:
            draft.method = "cdpo"
            draft.put("label_smoothing", smoothing, "model.label_smoothing")
        draft.put("beta", draft.number("model.beta", 0.1), "model.beta")
    elif draft.method == "kto":
        draft.put("beta", draft.number("model.beta", 0.01), "model.beta")
    elif draft.method == "reward" and draft.has("model.margin_loss_enable"):
        draft.put("objective.kind", "bradley_terry", "model.margin_loss_enable")
        draft.put("objective.margin_scale", 1.0, "model.margin_loss_enable")
    for key in ("model.label_smoothing", "model.nll_loss_coef", "model.ipo_enable", "model.margin_loss_enable"):
        draft.leave(key, "off, as here")


def _read_optimizer(draft: Draft, prefix: str, rate: float) -> None:
    draft.put("learning_rate", draft.number(f"{prefix}adam.lr", rate), f"{prefix}adam.lr")
    betas = draft.get(f"{prefix}adam.betas")
    if betas is not None:
        draft.put("optimizer.betas", [number(beta) for beta in _listed(betas)], f"{prefix}adam.betas")
    if str(draft.get(f"{prefix}optim", "adam")) != "adam":
        draft.miss(f"{prefix}optim", "AdamW alone trains", "AdamW stands in; set the rate anew")
    draft.leave(f"{prefix}optim", "AdamW is the optimizer")
    name = str(draft.get(f"{prefix}lr_scheduler", "cosine_with_min_lr"))
    if name not in SCHEDULES:
        draft.miss(f"{prefix}lr_scheduler", f"there is no schedule `{name}`", "`cosine` stands in")
    draft.put("schedule.kind", SCHEDULES.get(name, "cosine"), f"{prefix}lr_scheduler")
    if name not in SCHEDULES:
        draft.said.pop(f"{prefix}lr_scheduler", None)
    # 0.03 and 0.1 are the tool's own, where nothing is written.
    draft.put("schedule.warmup_ratio", draft.number(f"{prefix}lr_warmup_ratio", 0.03), f"{prefix}lr_warmup_ratio")
    if name == "cosine_with_min_lr":
        draft.put("schedule.final_ratio", draft.number(f"{prefix}min_lr_ratio", 0.1), f"{prefix}min_lr_ratio")
    draft.leave(f"{prefix}min_lr_ratio", "the schedule falls to 0")
    norm = draft.number(f"{prefix}max_norm", 1.0)
    draft.put("optimizer.clip_norm", norm if norm > 0 else None, f"{prefix}max_norm")


def _read_adapter(draft: Draft) -> None:
    rank = draft.number("ds.lora.rank", 0)
    keys = ("ds.lora.rank", "ds.lora.alpha", "ds.lora.dropout", "ds.lora.target_modules", "ds.load_in_4bit")
    if rank > 0:
        draft.put("adapter.kind", "qlora" if draft.has("ds.load_in_4bit") else "lora", "ds.load_in_4bit")
        draft.put("adapter.rank", int(rank), "ds.lora.rank")
        draft.put("adapter.alpha", draft.number("ds.lora.alpha", 16), "ds.lora.alpha")
        names = draft.get("ds.lora.target_modules", "all-linear")
        draft.put("adapter.targets", names, "ds.lora.target_modules")
        share = draft.number("ds.lora.dropout", 0)
        if share and draft.method == "sft":
            draft.put("adapter.dropout", share, "ds.lora.dropout")
        elif share:
            draft.miss("ds.lora.dropout", "only supervised training has dropout in an adapter", "leave it out")
    for key in keys:
        draft.leave(key, "all weights train, or the default")


def _read_machine(draft: Draft) -> None:
    kind = str(draft.get("ds.param_dtype", "bf16"))
    if kind in ("bf16", "fp32"):
        draft.put("compute.precision", kind, "ds.param_dtype", "bf16")
    else:
        draft.miss("ds.param_dtype", f"nothing is computed in {kind}", "`compute.precision: bf16`, or fp32")
    if draft.has("ds.adam_offload"):
        draft.put("compute.offload", "optimizer", "ds.adam_offload")
    for key in ("model.gradient_checkpointing_enable", "actor.gradient_checkpointing_enable"):
        if draft.has(key):
            draft.put("compute.activation_checkpointing", True, key)
    steps = draft.number("ckpt.save_steps", -1)
    if steps > 0:
        draft.put("checkpoint.every_steps", int(steps), "ckpt.save_steps")
    draft.leave("ckpt.save_steps", "every 50 steps, or 10 minutes")
    steps = draft.number("eval.steps", -1)
    if steps > 0:
        draft.put("examine.every_steps" if draft.takes("examine") else "log.held_out_every", int(steps), "eval.steps")
    draft.leave("eval.steps", "held-out rows are measured every 25 steps")


def _read_text(draft: Draft, *, online: bool, length: int) -> None:
    if draft.has("data.apply_chat_template"):
        draft.put("encoding.template", "chat", "data.apply_chat_template")
    else:
        words = draft.get("data.input_template")
        draft.put("encoding.template", "raw", "data.input_template", comment="no chat template is applied there")
        if words is not None or draft.method == "sft":
            draft.miss(
                "data.input_template",
                "it writes words around a prompt (`User: {}\\nAssistant: ` where nothing is said)",
                "write them into the rows, or as a Jinja file in `encoding.template`",
            )
    template = draft.get("data.tokenizer_chat_template")
    if template is not None:
        draft.miss(
            "data.tokenizer_chat_template",
            "a template on the command line",
            "save it, and name the file in `encoding.template`",
        )
    if draft.method == "sft":
        multi = draft.has("data.multiturn")
        draft.put(
            "encoding.train_on",
            "assistant_only" if multi else "last_assistant",
            "data.multiturn",
            comment="one answer trains without it",
        )
    for key in ("data.multiturn", "data.input_template", "data.apply_chat_template"):
        draft.leave(key, "said by the rows")
    if not online:
        draft.put("max_length", int(draft.number("data.max_len", length)), "data.max_len")
        return
    # One limit for prompt and completion there, unless the completion has its own.
    draft.put("max_length", int(draft.number("data.max_len", length)), "data.max_len")
