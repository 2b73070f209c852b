"""Reward models as folders: started from a language model, loaded from anywhere, saved so that `transformers` agrees.

    start = start_reward(load("embedded"), RewardRule())         # the same backbone under a fresh head
    saved = load_reward_folder("runs/mine/reward/model")         # .loaded, .rule, .encoding

A saved folder is an ordinary `AutoModelForSequenceClassification` folder. What `transformers` has no word for (pooling,
outputs and their mix, length correction, scale and shift, how rows are cut) lies beside it in `posttrain_reward.json`;
how it is spoken to in `posttrain_speech.json`, as for every model.

`start_reward` begins a stage of kind `reward`, `reward.export` writes the folder, `reward.scoring` answers from it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from posttrain.arguments import checked_text
from posttrain.config.adapters import AdapterSettings
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError, ModelError
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.adapters.bottleneck import register
from posttrain.models.adapters.facts import adapter_facts
from posttrain.models.adapters.folders import misfit
from posttrain.models.adapters.folding import cpu_copy, merged_copy
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.devices import device_of, dtype_of
from posttrain.models.folders.fingerprint import backbone_fingerprint, weights_fingerprint
from posttrain.models.folders.hub import Say
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.folders.new_tokens import add_rows, for_adapter
from posttrain.models.folders.own_code import code_runs, notice_of, remedy_of
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource, base_of, require_name, resolve
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import check_vocabulary, has_tokenizer, load_tokenizer
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.sharding.slices import read_slices, require_plain_weights, weight_shards
from posttrain.models.sharding.wrap import park
from posttrain.models.tree.heads import Init, is_reward_model, with_head

REWARD_FILE = "posttrain_reward.json"
SCHEMA = 1
ENCODING_KEYS = ("truncation", "max_length")
"""How a scored response is cut. How the model is spoken to stands in `posttrain_speech.json`, as for every model."""


@dataclass(frozen=True, slots=True)
class RewardFolder:
    """A reward model that was loaded: RewardFolder(loaded, RewardRule(scale=0.8), EncoderSettings(), {...})."""

    loaded: LoadedModel
    rule: RewardRule
    encoding: EncoderSettings
    statistics: Mapping[str, float] = field(default_factory=dict)
    """Of the rewards on the rows held out in training: {"mean", "std", "responses"}."""


# ---------------------------------------------------------------- starting one


def start_reward(
    loaded: LoadedModel,
    rule: RewardRule,
    *,
    init: Init = "zero",
    adapter: AdapterSettings | None = None,
    stop_ids: Iterable[int] = (),
    seed: int = 0,
    in_place: bool = True,
) -> LoadedModel:
    """The model's backbone under a head with the outputs of `rule`; a reward model goes on with the head it has.

    Args:
        adapter: a fresh one for the backbone; the head trains beside it.
        stop_ids: ids that end a response, which the pad token must not be.
        seed: of head and adapter.
        in_place: takes the model's weights over; False copies them, so that the policy stays as it is.

    Raises:
        ModelError: the architecture has no classifier in `transformers`, or the head has other outputs than asked for.
    """
    model = loaded.model
    if isinstance(model, PeftModel):
        adapter_of_start = model.active_peft_config
        model = merged_copy(model).to(model.device)  # what the adapter learnt is part of the start
    else:
        adapter_of_start = None
        model = model if in_place else cpu_copy(model).to(model.device)

    pad = pad_id(loaded.tokenizer, stop_ids)
    if is_reward_model(model):
        _check_outputs(model, rule, loaded.source)
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    else:
        # A policy that was merged or loaded for use may be frozen, and a head over a frozen backbone learns little.
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model = with_head(model, rule.heads, init=init, seed=seed, pad_token_id=pad)

    # A copy, for the policy's own tokenizer keeps its pad token; and in the tokenizer, because that is where whoever
    # pads rows for `transformers` takes the id from.
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    if adapter is not None:
        model = add_adapter(model, adapter, tokenizer=tokenizer, seed=seed, new_rows=loaded.new_rows)
    elif adapter_of_start is not None and not in_place:
        model = _fresh_lora_like(model, adapter_of_start, seed)
    return replace(loaded, model=model, tokenizer=tokenizer, fingerprint=weights_fingerprint(model), adapter=adapter)


def _fresh_lora_like(model: Any, settings: PeftConfig, seed: int) -> PeftModel:
    """A fresh LoRA of the sizes that the policy was loaded with."""
    if not isinstance(settings, LoraConfig):
        raise ConfigError(
            "a reward model is trained with LoRA or with all weights",
            found=f"a policy with an adapter of kind {settings.peft_type}",
            remedy="give train() the model's name, and the stage its own `adapter`",
        )
    config = copy.deepcopy(settings)
    config.task_type, config.inference_mode = "SEQ_CLS", False
    # The policy's targets may name its output projection, which a reward model has not.
    if isinstance(config.target_modules, set):
        names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        config.target_modules = {name for name in config.target_modules if name.rsplit(".", 1)[-1] in names}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _check_outputs(model: Any, rule: RewardRule, source: ModelSource) -> None:
    # Names count only where there are several: `transformers` calls a single output LABEL_0.
    names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
    if len(names) != len(rule.heads) or (len(names) > 1 and names != rule.heads):
        raise ModelError(
            "the start is a reward model with other outputs than the stage asks for",
            where=source.folder,
            found=", ".join(names),
            expected=", ".join(rule.heads),
            remedy="name the same outputs in `head`, or start from a language model",
        )


def pad_id(tokenizer: Any, stop_ids: Iterable[int]) -> int | None:
    """An id to pad rows with that never ends one; None if the tokenizer has none.

    `transformers` scores a row at its last token that is not the pad token. In many models the pad token is the token
    that ends a turn: a response would be scored one token early, and differently from how it was trained.
    """
    ends = {*stop_ids, tokenizer.eos_token_id}
    usual = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    special = [index for index, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    return next((index for index in [*usual, *special] if index is not None and index not in ends), None)


# ---------------------------------------------------------------- loading one


def load_reward_folder(
    name_or_path: str | Path,
    *,
    head: str | None = None,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    say: Say | None = None,
    sharding: Sharding | None = None,
) -> RewardFolder:
    """A reward model of ours, or any decoder that was saved as `...ForSequenceClassification`.

    Args:
        head: for a foreign model with several outputs: which one is the reward.
        sharding: keep this rank's part of every weight alone; see `folders.loading.load`.

    Raises:
        ModelError: nothing has this name, or it is not a reward model.
        ConfigError: a foreign model has several outputs and none was named.
    """
    require_name(name_or_path)
    device, dtype = device_of(device), dtype_of(dtype)
    if head is not None:
        checked_text("head", head, "helpfulness")
    source = resolve(name_or_path, say=say)
    record = read_reward_file(source.folder)
    if source.layout == "adapter":
        if record is None:
            raise _no_reward_model(source, "an adapter without a reward model's record")
        loaded = _load_adapter(source, _rule_of(record, source), dtype, say)
    else:
        loaded = _load_whole(source, dtype, sharding, device)
    if sharding is None:
        loaded.model.to(device)
    else:
        park(loaded.model.to(device), sharding)
        loaded.sharding = sharding
    encoding = loaded.speech.settings()
    if record is None:
        return RewardFolder(loaded, _foreign_rule(loaded, head), encoding)
    # A folder of before the record of speech has template and values here; with a record, these are not written.
    encoding = replace(encoding, **record["encoding"])
    return RewardFolder(loaded, _rule_of(record, source), encoding, record.get("statistics") or {})


def is_reward_folder(source: ModelSource) -> bool:
    """Whether the folder holds a reward model, by its files alone. Loading says what is wrong with a broken config."""
    if (source.folder / REWARD_FILE).is_file():
        return True
    try:
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    names = config.get("architectures") if isinstance(config, dict) else None
    return any(str(name).endswith("ForSequenceClassification") for name in names or ())


def require_policy(source: ModelSource) -> None:
    """
    Raises:
        ModelError: the folder holds a reward model, whose head gives scores: what it would say is noise.
    """
    if is_reward_folder(source):
        raise ModelError(
            "the folder holds a reward model, which gives scores and no answers",
            where=source.folder,
            expected="a language model",
            remedy=f"`posttrain score {source.name} FILE` uses it; to talk to a model, give that of a stage which "
            "trains a policy",
        )


def _load_whole(
    source: ModelSource, dtype: torch.dtype, sharding: Sharding | None, device: torch.device
) -> LoadedModel:
    if source.layout != "model" or not is_reward_folder(source):
        raise _no_reward_model(source, "a language model" if source.layout == "model" else source.layout)
    tokenizer = load_tokenizer(source.folder)
    model_code = code_runs(source.folder)
    slices = None if model_code or not weight_shards(source.folder) else sharding
    if sharding is not None:
        require_plain_weights(source.folder)
    try:
        with quiet():
            # A backbone without a `score` layer loads too, under a head of noise; `missing_keys` is what shows it.
            if slices is not None:
                model, info = read_slices(source.folder, AutoModelForSequenceClassification, dtype, slices, device)
            else:
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    source.folder,
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=model_code,
                    output_loading_info=True,
                )
    except Exception as error:
        raise ModelError(
            "transformers cannot load this folder as a reward model",
            where=source.folder,
            found=f"{type(error).__name__}: {error}",
            remedy=remedy_of(source.folder, "check config.json against the weights"),
        ) from error
    if not is_reward_model(model):
        raise _no_reward_model(source, f"{type(model).__name__}, an encoder")
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ModelError(
            "the folder lacks weights of this reward model, which would start at random",
            where=source.folder,
            found=", ".join(sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[:5]),
            remedy="get the complete model; config.json may be of another one",
        )
    check_vocabulary(model, tokenizer, source.folder)
    fingerprint = weights_fingerprint(model)
    notices = tuple(notice_of(source.folder))
    return LoadedModel(model.eval(), tokenizer, source, fingerprint, source, notices, speech=speech_of(source))


def _load_adapter(source: ModelSource, rule: RewardRule, dtype: torch.dtype, say: Say | None) -> LoadedModel:
    """The base under a head, and the adapter with the head that it trained."""
    base_source = base_of(source, say)
    loaded = load(base_source.loadable_name, dtype=dtype, say=say)
    tokenizer = load_tokenizer(source.folder) if has_tokenizer(source.folder) else loaded.tokenizer
    if (needed := for_adapter(loaded.model, loaded.tokenizer, tokenizer, source)) is not None:
        add_rows(loaded.model, needed[0], rows=needed[1])
    base = with_head(loaded.model, rule.heads, pad_token_id=tokenizer.pad_token_id)
    # The backbone alone: the head here is fresh, and the trained one comes with the adapter.
    expected = ((source.manifest or {}).get("training") or {}).get("backbone")
    if expected is not None and expected != backbone_fingerprint(base):
        raise ModelError(
            "the adapter was trained on other base weights",
            where=source.folder,
            found=base_source.folder,
            remedy="put the base model back, or export the stage again with `merge: true`",
        )
    try:
        register()
        with quiet(), torch.random.fork_rng(devices=[]):  # `peft` loads virtual tokens for use only
            trainable = not adapter_facts(source.folder).virtual_tokens
            model = PeftModel.from_pretrained(base, source.folder, is_trainable=trainable)
    except Exception as error:
        raise misfit(source, base_source, error) from error
    fingerprint = weights_fingerprint(model)
    return LoadedModel(model.eval(), tokenizer, source, fingerprint, loaded.base, speech=speech_of(source))


def _no_reward_model(source: ModelSource, found: str) -> ModelError:
    return ModelError(
        "the folder holds no reward model",
        where=source.folder,
        found=found,
        expected="a decoder saved as ...ForSequenceClassification, with a `score` layer",
        remedy="train one with `method: reward`, or give a stage's folder, runs/<recipe>/reward/model",
    )


def _foreign_rule(loaded: LoadedModel, head: str | None) -> RewardRule:
    """One output is the reward; of several, the one that is named. The response is scored where its template ends."""
    config = loaded.model.config
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    if len(names) == 1:
        return RewardRule(heads=names, whole_row=True)
    # No guess among several: a model of attributes may list "toxicity" first, and a policy would train towards it.
    if head is None:
        raise ConfigError(
            "the model has several outputs, and nothing says which one is the reward",
            where=loaded.source.folder,
            found=", ".join(names),
            remedy=f"name one: `--head {names[-1]}`, or `load_reward(folder, head={names[-1]!r})`",
        )
    rule = RewardRule(heads=names, weights=tuple(float(name == head) for name in names), whole_row=True)
    rule.index(head)
    return rule


# ---------------------------------------------------------------- the record beside the weights


def write_reward_file(
    folder: Path, rule: RewardRule, encoding: EncoderSettings, statistics: Mapping[str, float]
) -> None:
    """What `transformers` has no word for: posttrain_reward.json."""
    kept = {key: value for key, value in asdict(encoding).items() if key in ENCODING_KEYS}
    record = {"schema": SCHEMA, "rule": asdict(rule), "encoding": kept, "statistics": dict(statistics)}
    (folder / REWARD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_reward_file(folder: Path) -> dict[str, Any] | None:
    """The record of a folder that has one.

    Raises:
        ModelError: it is torn, or written by a later version.
    """
    path = folder / REWARD_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        # A key that this version does not know would change the score; it is refused, never dropped.
        known = record["schema"] == SCHEMA and {f.name for f in fields(RewardRule)} >= set(record["rule"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("the record is torn", where=path, found=error, remedy="copy the folder again") from error
    if not known:
        raise ModelError(
            "the record has another layout",
            where=path,
            expected=f"schema {SCHEMA}",
            remedy="use the version of posttrain that wrote it",
        )
    return dict(record)


def _rule_of(record: Mapping[str, Any], source: ModelSource) -> RewardRule:
    def tuples(value: Any) -> Any:
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    try:
        # JSON has lists only, and the rule must equal the one that was trained: caches are keyed by it.
        return RewardRule(**{key: tuples(value) for key, value in record["rule"].items()})
    except TypeError as error:
        raise ModelError(
            "the record is torn", where=source.folder / REWARD_FILE, found=error, remedy="copy the folder again"
        ) from error
