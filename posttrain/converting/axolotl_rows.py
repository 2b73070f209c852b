"""The data sets of an Axolotl file: paths, formats, columns, roles and what of a conversation trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.converting.axolotl_keys import DATASET
from posttrain.converting.draft import Draft
from posttrain.converting.entry import Cannot, empty
from posttrain.converting.huggingface import UNSAID
from posttrain.converting.rows import Folders, Rows, address, put_rows, renamed, split_of

TEXTS = ("completion", "pretrain")
"""Types whose rows are bare texts."""
CHATS = ("chat_template", "sharegpt", "chat_template.default", "chat_template.argilla_chat", "chatml.icr")
"""Types that are written by the model's template, so the rows say everything."""
INSTRUCTIONS = (
    "alpaca",
    "alpaca_chat",
    "alpaca_w_system",
    "context_qa",
    "gpteacher",
    "oasst",
    "jeopardy",
    "explainchoice",
)
"""Types that write their own words around a row ("### Instruction:"), which no model's template does."""


def read_data(draft: Draft, folders: Folders) -> None:
    """`datasets`, `pretraining_dataset` and `test_datasets`."""
    key = "datasets" if draft.has("datasets") else "pretraining_dataset"
    sets = draft.get(key, [])
    if not isinstance(sets, Sequence) or isinstance(sets, str) or not all(isinstance(one, Mapping) for one in sets):
        sets = [{"path": str(sets)}] if isinstance(sets, str) else []
    if not sets:
        draft.miss("datasets", "the file names no rows", f"write a file or a hub id in place of `{UNSAID}`")
        draft.put("data", UNSAID)
    put_rows(draft, [_one(draft, one, f"{key}[{place}].", folders) for place, one in enumerate(sets)], key)
    tests = draft.get("test_datasets", [])
    if isinstance(tests, Sequence) and tests and all(isinstance(one, Mapping) for one in tests):
        held = [_one(draft, one, f"test_datasets[{place}].", folders, quiet=True) for place, one in enumerate(tests)]
        put_rows(draft, held, "test_datasets", key="held_out")
    for name in ("datasets", "pretraining_dataset", "test_datasets"):
        draft.leave(name, "not set")
    if draft.has("tokens"):
        _tokens(draft)


def _one(draft: Draft, one: Mapping[str, Any], prefix: str, folders: Folders, *, quiet: bool = False) -> Rows:
    """Raises nothing: what a data set says that cannot be said here is listed under `datasets[0].KEY`."""
    rows = Rows(address(folders, str(one.get("path")), one.get("name"), one.get("data_files")))
    split_of(draft, rows, f"{prefix}split", one.get("split"))
    kind = one.get("type")
    if isinstance(kind, Mapping):
        _own_words(draft, rows, kind, prefix)
    else:
        _type(draft, rows, str(kind or ("pretrain" if prefix.startswith("pre") else "")), one, prefix)
    _columns(draft, rows, one, prefix)
    if not quiet:
        _training(draft, one, prefix)
    for key, value in one.items():
        entry = DATASET.get(key)
        if entry is None:
            draft.miss(f"{prefix}{key}", f"no key of a data set that is known: {value}", "see docs/data.md")
        elif isinstance(entry, Cannot) and not empty(value) and value != 0 and value not in entry.off:
            draft.miss(f"{prefix}{key}", entry.why, entry.remedy)
    return rows


def _type(draft: Draft, rows: Rows, kind: str, one: Mapping[str, Any], prefix: str) -> None:
    base = kind.partition(":")[0]
    if base in TEXTS:
        rows.format = "text"
        column = one.get("field") or one.get("text_column")
        rows.columns.update(renamed({"text": column}))
        draft.put("encoding.template", "raw", comment="bare texts")
        draft.put("encoding.truncation", "split", comment="texts are cut into pieces, as there")
    elif base in CHATS or (draft.method not in ("sft",) and not base):
        pass
    elif base.split(".")[0] in INSTRUCTIONS:
        rows.format = "alpaca" if base.startswith("alpaca") else "auto"
        draft.miss(
            f"{prefix}type",
            f'`{kind}` writes words of its own around each row ("### Instruction:"); the rows go through the model\'s '
            "template here",
            "better for chat models as it is; for the same text write a Jinja file and name it in `encoding.template`",
        )
    elif base.startswith(("chatml.", "llama3.", "zephyr.", "passthrough.", "user_defined.", "chat_template.")):
        if base.startswith("chatml."):
            draft.put("encoding.template", "chatml", comment=f"type: {kind}")
    elif draft.method not in ("sft", "reward"):
        draft.miss(
            f"{prefix}type", f"`{kind}` is code that makes rows", "run it once, write the rows to a file, name that"
        )
    elif base:
        draft.miss(
            f"{prefix}type", f"there is no format `{kind}`", "`format: auto` tells it from the rows: docs/data.md"
        )


def _own_words(draft: Draft, rows: Rows, kind: Mapping[str, Any], prefix: str) -> None:
    """A type that is written out: names of columns, and formats with words of their own."""
    names = {
        "prompt": kind.get("field_prompt") or kind.get("field_instruction"),
        "completion": kind.get("field_completion") or kind.get("field_output"),
        "chosen": kind.get("field_chosen"),
        "rejected": kind.get("field_rejected"),
        "system": kind.get("field_system"),
        "label": kind.get("field_label"),
    }
    rows.columns.update(renamed(names))
    if kind.get("field_input"):
        draft.miss(
            f"{prefix}type.field_input", "a prompt is one column", "join the two in the rows, or use `format: alpaca`"
        )
    if any(kind.get(key) for key in ("format", "no_input_format", "prompt_format", "chosen_format", "system_format")):
        draft.miss(
            f"{prefix}type.format",
            "the model's template writes the text around a row",
            "write a Jinja file: docs/encoding.md",
        )


def _columns(draft: Draft, rows: Rows, one: Mapping[str, Any], prefix: str) -> None:
    messages = one.get("field_messages")
    if messages and messages not in ("messages", "conversations", "conversation"):
        rows.columns["messages"] = str(messages)
    rows.columns.update(renamed({"chosen": one.get("field_chosen"), "rejected": one.get("field_rejected")}))
    mapping = one.get("message_property_mappings") or {}
    role = mapping.get("role") or one.get("message_field_role") or "role"
    content = mapping.get("content") or one.get("message_field_content") or "content"
    if (role, content) not in (("role", "content"), ("from", "value")):
        draft.miss(
            f"{prefix}message_property_mappings",
            f"a turn has `role` and `content`, or `from` and `value`, not `{role}` and `{content}`",
            "rename the keys in the rows",
        )
    for ours, theirs in (one.get("roles") or {}).items():
        for name in [theirs] if isinstance(theirs, str) else theirs:
            if name != ours:
                rows.roles[str(name)] = str(ours)


def _training(draft: Draft, one: Mapping[str, Any], prefix: str) -> None:
    """Which turns train. The recipe has one setting for all its data sets."""
    trained = one.get("roles_to_train")
    if isinstance(trained, Sequence) and not isinstance(trained, str):
        wanted = {str(role) for role in trained} - {"assistant", "gpt"}
        if wanted and draft.method == "sft":
            draft.put("encoding.train_roles", {role: True for role in sorted(wanted)}, comment="roles_to_train")
    for key in ("train_on_eos", "train_on_eot"):
        value = str(one.get(key) or "turn").lower()
        if value in ("none", "false"):
            draft.put("encoding.stop_token", "ignore", comment=key)
        elif value in ("all", "last"):
            draft.miss(f"{prefix}{key}", "the token that ends a turn trains where the turn does", "`stop_token: train`")


def _tokens(draft: Draft) -> None:
    value = draft.get("tokens")
    if isinstance(value, Mapping):  # the old place of `special_tokens`
        draft.miss("tokens", "the model's own tokens end turns and begin texts", "change its tokenizer's files")
        return
    draft.put("tokens", [str(token) for token in (value if isinstance(value, list) else [value])], "tokens")
