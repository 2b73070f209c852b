"""A name becomes what is served: one base with its adapters by name, or one reward model.

load_served("embedded", adapters={"sums": "runs/sums/grpo/model"})       # Served with `embedded` and `sums`
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.speech import Speech
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.active import ACTIVE, AdapterName, adapter_in_use
from posttrain.models.adapters.facts import adapter_facts
from posttrain.models.adapters.folders import load_adapter
from posttrain.models.adapters.kinds import virtual_tokens
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.folders.source import ModelSource, resolve
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import has_tokenizer, load_tokenizer
from posttrain.models.reward.folders import is_reward_folder
from posttrain.models.reward.scoring import load_reward
from posttrain.rollout.native import NativeEngine
from posttrain.serve.served import Detokenizer, Served, ServedPolicy

PREFIX_TOKENS = 8_192
"""Of each engine: the next request of a chat begins with all that was said in it, and a suite's with its examples."""
NO_LIMIT = 1_000_000
"""Positions of a model that names none."""

Say = Callable[[str], None]


def load_served(
    model: str,
    *,
    name: str | None = None,
    adapters: Mapping[str, str] | None = None,
    template: str = "auto",
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    max_rows: int | None = None,
    cache_tokens: int = 32_768,
    prefix_tokens: int = PREFIX_TOKENS,
    say: Say | None = None,
) -> Served:
    """Load what is to be served.

    Args:
        model: a catalogue name, a folder or a hub id; a policy or a reward model.
        name: what clients call it; None takes it from `model`.
        adapters: folders of adapters of this model, by what clients call them.
        template: `auto`, as the model was trained, or another one.
        max_rows: completions that an engine samples at a time; None is the engine's own.
        cache_tokens: cells of an engine's cache; no prompt with its completion is longer.
        prefix_tokens: tokens of ended sequences that each engine keeps, for prompts that begin with them.

    Raises:
        ModelError: a model or adapter cannot be loaded, or an adapter belongs to another base.
        ConfigError: two models have one name, or there are adapters for what can have none.
    """
    adapters = dict(adapters or {})
    source = resolve(model, say=say)
    called = _name(name or name_of(source), adapters)
    if is_reward_folder(source):
        if adapters:
            raise _no_adapters(source, "a reward model")
        reward = load_reward(model, device=device, dtype=dtype, say=say)
        return Served(reward=reward, reward_name=called, created=int(time.time()), hidden=_hidden(source))
    if adapters and source.layout == "adapter":
        raise _no_adapters(source, "an adapter itself")

    loaded = load(model, device=device, dtype=dtype, say=say)
    if say is not None:
        for notice in loaded.notices:
            say(notice)
    sources = {adapter: resolve(folder, say=say) for adapter, folder in adapters.items()}
    peft_model = _with_adapters(loaded, sources)

    def policy(called: str, own: LoadedModel, adapter: AdapterName) -> ServedPolicy:
        return _policy(
            called,
            own,
            peft_model,
            adapter,
            max_rows=max_rows,
            cache_tokens=cache_tokens,
            prefix_tokens=prefix_tokens,
            template=template,
        )

    policies = {called: policy(called, loaded, None if adapters else ACTIVE)}
    for adapter, folder in sources.items():
        tokenizer = load_tokenizer(folder.folder) if has_tokenizer(folder.folder) else loaded.tokenizer
        own = replace(loaded, tokenizer=tokenizer, speech=speech_of(folder), source=folder)
        policies[adapter] = policy(adapter, own, adapter)
        policies[adapter].is_adapter_of = called
    # A template of one's own is named in errors as it was given: a path.
    own_template = () if template in ("auto", "chat", "chatml", "raw") else (template,)
    return Served(policies, created=int(time.time()), hidden=(*own_template, *_hidden(source, *sources.values())))


def _name(called: str, adapters: Mapping[str, str]) -> str:
    """The model's own name, which no adapter may have: a client that asks for it would get one of the two."""
    if called in adapters:
        raise ConfigError(
            "the model and one of its adapters have the same name",
            where="--adapter",
            found=called,
            remedy="name the adapter otherwise, or the model with `--name`",
        )
    return called


def name_of(source: ModelSource) -> str:
    """What clients call a model: its catalogue name or hub id; of a folder the last part that says something, since a
    whole path would tell strangers about this machine. name_of(runs/quickstart/dpo/model) -> "dpo"."""
    if source.kind != "folder":
        return source.name
    parts = source.folder.resolve().parts
    return next((part for part in reversed(parts) if part not in ("model", "checkpoint")), source.folder.name)


def _with_adapters(loaded: LoadedModel, sources: Mapping[str, ModelSource]) -> Any:
    """The base with all adapters on it, by their names; the base itself without any."""
    if not sources:
        return loaded.model
    kinds: dict[str, str] = {}
    model: Any = loaded.model
    for name, source in sources.items():
        if source.layout != "adapter":
            raise ModelError(
                f"the folder of the adapter `{name}` holds no adapter",
                where=source.folder,
                found=f"a start of kind {source.layout}",
                remedy="serve a whole model by itself: `posttrain serve FOLDER`",
            )
        kinds[name] = adapter_facts(source.folder).kind
        if len(set(kinds.values())) > 1:
            raise ConfigError(
                "adapters of several kinds do not share one model",
                where="--adapter",
                found=", ".join(f"{adapter} ({kind})" for adapter, kind in kinds.items()),
                remedy="serve adapters of one kind, or merge one of them: `posttrain merge FOLDER OUT`",
            )
        model = load_adapter(model, loaded.base, source, name=name, fingerprint=loaded.fingerprint)
    # `peft` reads an adapter's file onto the first accelerator that it finds.
    return model.to(loaded.model.device).eval()


def _policy(
    name: str,
    loaded: LoadedModel,
    model: Any,
    adapter: AdapterName,
    *,
    max_rows: int | None,
    cache_tokens: int,
    prefix_tokens: int,
    template: str,
) -> ServedPolicy:
    # Each of its own, since each policy's is asked under another lock, and adapters share the base's.
    encoder = Encoder(copy.deepcopy(loaded.tokenizer), _spoken(template, loaded.speech))
    engine = NativeEngine(
        model,
        max_rows=max_rows,
        cache_tokens=cache_tokens,
        prefix_tokens=prefix_tokens,
        adapter=adapter,
        # A copy: the engine's thread decodes while the server's encodes, and a tokenizer may not be changed meanwhile.
        decode=Detokenizer(copy.deepcopy(loaded.tokenizer)),
    )
    config = model.config.get_text_config(decoder=True)
    with adapter_in_use(model, adapter):
        virtual = 0 if adapter is None else virtual_tokens(model)
    positions = (getattr(config, "max_position_embeddings", None) or NO_LIMIT) - virtual
    return ServedPolicy(
        name,
        engine,
        encoder,
        longest=min(positions, cache_tokens),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        fingerprint=loaded.fingerprint,
    )


def _spoken(template: str, speech: Speech) -> EncoderSettings:
    settings = speech.settings()
    if template in ("auto", settings.template):
        return settings
    return replace(settings, template=template, template_kwargs={})


def _hidden(*sources: ModelSource) -> tuple[str, ...]:
    """How paths of this machine may stand in an error: as they were given, and whole."""
    paths = {str(path) for source in sources for path in (source.folder, Path(source.folder).resolve())}
    return tuple(sorted((path for path in paths if len(path) > 1), key=len, reverse=True))


def _no_adapters(source: ModelSource, what: str) -> ConfigError:
    return ConfigError(
        "adapters are put on a whole language model",
        where="--adapter",
        found=f"{source.name}, {what}",
        remedy="name the model under them as MODEL, and each adapter with `--adapter NAME=FOLDER`",
    )
