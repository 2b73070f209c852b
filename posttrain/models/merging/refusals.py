"""What cannot be merged, said before a byte is written: each refusal names both models, the key and the values.

    require_alike(models, base, tokens="refuse", template="refuse")

Weights are merged position by position. Where a position means something else in two models (a token, a frequency, the
scale of a norm), the result is no model of either kind, and it does not fail: it says garbage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.merging import MergeSettings
from posttrain.config.varied import filters_of
from posttrain.errors import ConfigError
from posttrain.models.folders.weight_files import abbreviated
from posttrain.models.merging.inputs import OpenModel

NO_MATTER = frozenset(
    {
        # Of files and versions.
        *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map", "architectures"),
        # Of training and of generation, which has its own file.
        *("use_cache", "initializer_range", "output_attentions", "output_hidden_states", "return_dict"),
        *("attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"),
        *("classifier_dropout", "router_aux_loss_coef", "output_router_logits", "problem_type", "pretraining_tp"),
        *("task_specific_params", "chunk_size_feed_forward"),
        # Compared apart, with words of their own.
        *(
            "vocab_size",
            "tie_word_embeddings",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "unk_token_id",
            "id2label",
            "label2id",
        ),
        *("max_position_embeddings", "num_labels"),
    }
)
"""Keys of config.json that change nothing of what the weights compute. Every other key has to be equal."""
SPECIAL = ("bos_token", "eos_token", "unk_token")
"""Tokens by whose name a tokenizer knows them. The pad token is masked wherever it stands, but in a reward model it
decides where a response ends."""


def require_alike(
    models: Sequence[OpenModel], base: OpenModel | None, *, tokens: str = "refuse", template: str = "refuse"
) -> None:
    """Hold every model, and the base, against the first.

    Args:
        tokens: `refuse` other vocabularies; else they are put together by the tokens' texts (`tokens.py`).
        template: `refuse` models that are spoken to differently; `first` takes the first one's way.

    Raises:
        ConfigError: two of them cannot be merged.
    """
    first, *others = models
    for other in [*others, *([base] if base is not None else [])]:
        _require_same_kind(first, other)
        _require_same_config(first, other)
        if tokens == "refuse":
            _require_same_vocabulary(first, other)
            _require_same_special_tokens(first, other)
        _require_same_tensors(first, other, free_rows=tokens != "refuse")
    # Not of the base: one that was only pretrained has no template, and nobody speaks to it.
    if template == "refuse":
        for other in others:
            _require_same_speech(first, other)


def require_other_folder(out: Path, folders: Mapping[str, Path]) -> None:
    """Raises ConfigError if the merge would be written over one of the models that it is made of, or into one.

    Args:
        folders: where each model lies, by its name.
    """
    target = out.resolve()
    for name, folder in folders.items():
        place = folder.resolve()
        if target == place or place in target.parents:
            where = "replace" if target == place else "lie inside"
            raise ConfigError(
                f"the merged model would {where} what it is made of",
                where=out,
                found=f"`{name}`, in {place}",
                remedy="name another folder",
            )


def require_layers(models: Sequence[OpenModel], wanted: int | None) -> None:
    """Raises ConfigError if a model has more or fewer layers than the settings count, which then are for others."""
    for model in models if wanted is not None else ():
        count = model.config.get_text_config().num_hidden_layers
        if count != wanted:
            raise ConfigError(
                "the slices name other layers than the models have",
                where=model.folder,
                found=f"{count} layers in `{model.name}`",
                expected=f"{wanted} layers",
                remedy="correct `layer_range`: what is merged are whole models",
            )


# ---------------------------------------------------------------- kind and config


def _refused(
    problem: str, first: OpenModel, other: OpenModel, values: tuple[object, ...], remedy: str, where: object = None
) -> ConfigError:
    """Two models that differ in a value: whose is which stands in `found`."""
    return ConfigError(
        problem,
        where=where or other.folder,
        found=f"{values[0]} in `{first.name}`, {values[1]} in `{other.name}`",
        expected="the same in all models, and in the base",
        remedy=remedy,
    )


def _require_same_kind(first: OpenModel, other: OpenModel) -> None:
    kinds = tuple("a reward model" if model.is_reward else "a policy" for model in (first, other))
    if kinds[0] != kinds[1]:
        raise _refused(
            "a reward model cannot be merged with a policy: one has a head of scores, the other a projection to tokens",
            first,
            other,
            kinds,
            "merge policies with policies, and reward models with reward models",
        )
    classes = tuple(", ".join(model.config.architectures or ["none"]) for model in (first, other))
    types = tuple(model.config.model_type for model in (first, other))
    if types[0] != types[1] or classes[0] != classes[1]:
        raise _refused(
            "models of different architectures cannot be merged",
            first,
            other,
            classes if classes[0] != classes[1] else types,
            "merge models of one architecture; to join others, distil one into the other (docs/synthesis.md)",
        )
    if first.is_reward:
        _require_same_head(first, other)


def _require_same_head(first: OpenModel, other: OpenModel) -> None:
    """Outputs and how they are read; not scale and shift, which are fitted to each model's own scores."""
    labels = tuple(dict(model.config.id2label or {}) for model in (first, other))
    if len(labels[0]) != len(labels[1]) or (len(labels[0]) > 1 and labels[0] != labels[1]):
        raise _refused(
            "the reward models have heads with other outputs",
            first,
            other,
            tuple(", ".join(map(str, label.values())) for label in labels),
            "merge reward models that were trained with the same `head`",
        )
    rules = tuple((model.reward or {}).get("rule", {}) for model in (first, other))
    for key in sorted({*rules[0], *rules[1]} - {"scale", "shift"}):
        if rules[0].get(key) != rules[1].get(key):
            raise _refused(
                f"the reward models read their scores differently: `{key}`",
                first,
                other,
                (rules[0].get(key, "unset"), rules[1].get(key, "unset")),
                "merge reward models that were trained with the same `head`, `pooling` and `length`",
            )


def _require_same_config(first: OpenModel, other: OpenModel) -> None:
    if first.is_tied != other.is_tied:
        raise _refused(
            "one model shares its embeddings with its output projection, the other has two tensors",
            first,
            other,
            tuple(f"tie_word_embeddings: {str(model.is_tied).lower()}" for model in (first, other)),
            "save the tied one with a projection of its own (`tie_word_embeddings: false` and the embeddings a second "
            "time as `lm_head.weight`), and merge that",
        )
    values = tuple(_computing(model.config.to_dict()) for model in (first, other))
    for key in sorted({*values[0], *values[1]}):
        pair = tuple(side.get(key, "unset") for side in values)
        if not _means_the_same(*pair):
            raise _refused(
                f"the models compute differently with the same weights: `{key}` of config.json",
                first,
                other,
                tuple(f"{key}: {json.dumps(value, default=str)}" for value in pair),
                "merge models of one base; if the two values mean the same, make the config files equal",
            )


def _means_the_same(one: Any, other: Any) -> bool:
    """Whether two values of config.json are equal, numbers to float32's digits: a GGUF file has 9.999999974752427e-07
    for 1e-06, and that is the same model."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_means_the_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-7)
    return bool(one == other)


def _computing(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys that change what weights compute, with those of parts (`text_config`) under dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in NO_MATTER or value is None:  # None is what a key has that a file leaves out
            continue
        if isinstance(value, Mapping):
            found |= _computing(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


# ---------------------------------------------------------------- tokens


def _require_same_vocabulary(first: OpenModel, other: OpenModel) -> None:
    ours, theirs = first.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    remedy = "write `tokens: union` (`--tokens union`), which puts tokens together by their text"
    if ours != theirs:
        by_id = tuple({index: token for token, index in vocabulary.items()} for vocabulary in (ours, theirs))
        ids = sorted({*by_id[0], *by_id[1]})
        index = next(index for index in ids if by_id[0].get(index) != by_id[1].get(index))
        tokens = tuple(repr(side[index]) if index in side else "no token" for side in by_id)
        sizes = "" if len(ours) == len(theirs) else f"{len(ours):,} and {len(theirs):,} tokens; "
        raise ConfigError(
            f"`{first.name}` and `{other.name}` have other vocabularies: a row of the embeddings would be two tokens",
            where=other.folder,
            found=f"{sizes}id {index} is {tokens[0]} in `{first.name}` and {tokens[1]} in `{other.name}`",
            expected="the same token at every id",
            remedy=remedy,
        )
    if first.rows != other.rows:
        raise _refused(
            "the models have embeddings for another number of ids",
            first,
            other,
            (f"vocab_size: {first.rows:,}", f"vocab_size: {other.rows:,}"),
            remedy,
        )
    if (difference := other_cut(first, other)) is not None:
        raise _refused(
            f"the tokenizers cut text differently ({difference}), so that the same ids were trained on other texts",
            first,
            other,
            (f"its own {difference}", "another one"),
            "merge models of one tokenizer",
        )


def other_cut(first: OpenModel, other: OpenModel) -> str | None:
    """In which part of its work the second tokenizer differs, tokens that were added apart; None: in none."""
    sides = []
    for model in (first, other):
        backend = getattr(model.tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer in Python: its vocabulary is all that can be compared
            return None
        said = json.loads(backend.to_str())
        parts = said["model"]
        cut = {"vocabulary": parts.get("vocab"), "merges": parts.get("merges")}
        sides.append({**cut, "normalizer": said.get("normalizer"), "pre_tokenizer": said.get("pre_tokenizer")})
    return next((name for name in sides[0] if sides[0][name] != sides[1][name]), None)


def _require_same_special_tokens(first: OpenModel, other: OpenModel) -> None:
    names = (*SPECIAL, "pad_token") if first.is_reward else SPECIAL
    for name in names:
        pair = tuple(getattr(model.tokenizer, name, None) for model in (first, other))
        # A base that was only pretrained may have no token of this name; it never says one.
        if pair[0] != pair[1] and None not in pair:
            raise _refused(
                f"the models have other special tokens: `{name}`",
                first,
                other,
                (repr(pair[0]), repr(pair[1])),
                f"set the same `{name}` in both tokenizer_config.json, if the models were trained alike; or write "
                "`tokens: union` to take the first model's",
            )
    special = tuple(
        {str(token) for token in model.tokenizer.added_tokens_decoder.values() if token.special}
        for model in (first, other)
    )
    if special[0] != special[1]:
        token = min(special[0] ^ special[1])
        raise _refused(
            f"the models do not agree whether {token!r} is a special token",
            first,
            other,
            tuple("special" if token in side else "plain text" for side in special),
            "make the tokenizers equal, or write `tokens: union` to take the first model's",
        )


# ---------------------------------------------------------------- settings that only the files can judge


def require_filters_fit(settings: MergeSettings, model: OpenModel) -> None:
    """Raises ConfigError for a filter that is in no tensor's name: what it was to change would keep another value."""
    values: dict[str, Any] = {name: settings.common(name) for name in (*settings.row.options, *settings.row.per_model)}
    for index, source in enumerate(settings.models):
        values |= {f"{name} of {source.label}": settings.of_model(index, name) for name in settings.row.per_model}
    for key, value in values.items():
        for item in filters_of(value):
            if not any(item.fits(name) for name in model.entries):
                raise ConfigError(
                    f"the filter `{item.filter}` is in no tensor's name, so it changes nothing",
                    where=key,
                    found=f"filter: {item.filter}",
                    expected=f"a part of a name such as `{next(iter(sorted(model.entries)))}`",
                    remedy=f"correct the filter, or remove it: `{model.name}` has "
                    + abbreviated({name.split(".")[-2] for name in model.entries if "." in name}),
                )


def require_base_apart(models: Sequence[OpenModel], base: OpenModel | None) -> None:
    """Raises ConfigError for a base that is also a model, however the two are spelled."""
    for model in models if base is not None and not base.averaged else ():
        if base is not None and not model.averaged and _files_of(model) == _files_of(base):
            raise ConfigError(
                f"the base `{base.name}` is also one of the models, from which it does not differ",
                where="models",
                found=f"`{model.name}` and `{base.name}` are both {base.source.folder}",
                remedy="remove it from `models`; to keep more of the base, write smaller weights or `lambda`",
            )


def twice_named(models: Sequence[OpenModel]) -> list[str]:
    """Names of models whose files an earlier one has, too: each counts again."""
    files = [_files_of(model) for model in models]
    return [model.name for place, model in enumerate(models) if not model.averaged and files[place] in files[:place]]


def _files_of(model: OpenModel) -> set[Path]:
    # What is converted lies in a scratch folder of its own each time.
    if model.converted is not None:
        return {model.source.folder.resolve()}
    return {entry.path.resolve() for entry in model.entries.values()}


# ---------------------------------------------------------------- speech and tensors


def _require_same_speech(first: OpenModel, other: OpenModel) -> None:
    differences = first.speech.differences(other.speech)
    templates = tuple(model.tokenizer.chat_template for model in (first, other))
    if not differences and templates[0] != templates[1]:
        differences = ["two texts of the template"]
    if differences:
        raise ConfigError(
            f"`{first.name}` and `{other.name}` were trained to be spoken to differently",
            where=other.folder,
            found="; ".join(differences),
            expected="one chat template with the same values",
            remedy=f"write `template: first` (`--set template=first`) to speak to the merge as to `{first.name}`",
        )


def _require_same_tensors(first: OpenModel, other: OpenModel, *, free_rows: bool) -> None:
    ours, theirs = set(first.entries), set(other.entries)
    if ours != theirs:
        missing, extra = ours - theirs, theirs - ours
        raise ConfigError(
            f"`{first.name}` and `{other.name}` are not made of the same tensors",
            where=other.folder,
            found=f"`{other.name}` lacks: {abbreviated(missing) or 'none'}; has beyond: {abbreviated(extra) or 'none'}",
            expected=f"the {len(ours):,} tensors of `{first.name}`",
            remedy="get the complete models, saved by the same class",
        )
    for name, entry in first.entries.items():
        shapes = entry.shape, other.entries[name].shape
        # Along tokens, a union makes them equal; whatever else differs does not fit.
        along_tokens = free_rows and shapes[0][1:] == shapes[1][1:] and _is_per_token(first, other, shapes)
        if shapes[0] != shapes[1] and not along_tokens:
            raise _refused(
                f"`{name}` has another shape",
                first,
                other,
                tuple(list(shape) for shape in shapes),
                "merge models of one size",
                other.entries[name].path,
            )


def _is_per_token(first: OpenModel, other: OpenModel, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    return bool(shapes[0]) and bool(shapes[1]) and shapes[0][0] == first.rows and shapes[1][0] == other.rows
