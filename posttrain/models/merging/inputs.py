"""What is merged, opened: where each tensor lies, and what config, tokenizer and records say; no weight is in memory.

    opened = open_model("runs/mine/sft/model", scratch)
    opened.entries["model.norm.weight"].shape

A folder with safetensors is opened as it is. Anything else (an adapter, GGUF, pickled weights) is loaded once, by the
loader of every verb, and written as safetensors to a scratch folder: memory holds one such model, and never two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from posttrain.data.speech import Speech
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.facts import adapter_facts
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.folders.finite import is_finite
from posttrain.models.folders.hub import Say
from posttrain.models.folders.loading import load
from posttrain.models.folders.own_code import code_runs, remedy_of
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.shard_files import DTYPES
from posttrain.models.folders.source import ModelSource, base_of, resolve
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import load_tokenizer
from posttrain.models.folders.weight_files import GET_AGAIN
from posttrain.models.merging.tensors import Entry, entries_of, entries_of_file, read_tensor, rows_of
from posttrain.models.reward.folders import load_reward_folder, read_reward_file

HEADS = ("lm_head.weight", "embed_out.weight")
"""How output projections are called; where they are the embeddings too, a file may hold them twice."""
RECOMPUTED = ("rotary_emb.inv_freq", "attn.masked_bias")
"""Ends of the names of tensors that older versions of transformers saved and that no version reads."""


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model whose tensors can be read one at a time: OpenModel("code", source, folder, entries, config, ...)."""

    name: str
    """As the user wrote it, or of a checkpoint its path."""
    source: ModelSource
    folder: Path
    """Where its files lie: the source's folder, or the scratch folder that it was converted into."""
    entries: Mapping[str, Entry]
    config: Any
    """As transformers reads it: what a file leaves out has its default."""
    tokenizer: Any
    speech: Speech
    reward: Mapping[str, Any] | None = None
    """Of a reward model of ours: posttrain_reward.json."""
    converted: str | None = None
    """From what it was converted, in words; None of a folder that is read as it is."""
    averaged: tuple[tuple[float, OpenModel], ...] = ()
    """Checkpoints of one run with their shares: what is read is their mean. Empty: the model is itself."""

    @property
    def is_reward(self) -> bool:
        names = self.config.architectures or ()
        return self.reward is not None or any(name.endswith("ForSequenceClassification") for name in names)

    @property
    def is_tied(self) -> bool:
        return bool(self.config.get_text_config().tie_word_embeddings) and not self.is_reward

    @property
    def rows(self) -> int:
        """Of its embeddings, which may be more than it has tokens."""
        return int(self.config.get_text_config().vocab_size)

    def bytes_to_read(self, name: str) -> int:
        """What `read` takes from the disk."""
        if self._moves(name):
            return sum(one.entries[name].size for _, one in self.averaged)
        return self.entries[name].size

    def _moves(self, name: str) -> bool:
        """Whether the checkpoints have different values: what was frozen is the start's in all of them."""
        return len({one.entries[name].path for _, one in self.averaged}) > 1

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """One tensor as it is stored, or some of its rows; a mean of checkpoints in float32.

        Raises:
            ModelError: it holds a NaN or an infinity, which a merge would spread.
        """
        if self._moves(name):
            # In fp64, so that a mean of many checkpoints rounds once.
            return sum(one.read(name, rows).double() * share for share, one in self.averaged).float()  # type: ignore[union-attr]
        entry = self.entries[name]
        tensor = read_tensor(entry if rows is None else rows_of(entry, *rows))
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"`{name}` of `{self.name}` is not finite, and neither would be what is merged with it",
                where=entry.path,
                found=f"{bad:,} of {tensor.numel():,} entries are NaN or infinite",
                remedy="leave this model out, or give an earlier checkpoint of it",
            )
        return tensor


def open_model(name: str | Path, scratch: Callable[[], Path], *, say: Say | None = None) -> OpenModel:
    """Open a catalogue name, a folder, an adapter's folder, a `.gguf` file or a hub id.

    Args:
        scratch: makes an empty folder for what has to be converted; whoever passes it removes the folder.

    Raises:
        ModelError: nothing has this name, or its files are torn, quantised or not those of a model.
        ConfigError: an adapter that cannot be folded into the weights.
    """
    source = resolve(name, say=say)
    # A reward model's adapter is told from its record: its config may name the base of a policy.
    reward = read_reward_file(source.folder)
    folder, converted = source.folder, _what_to_convert(source)
    if converted is not None:
        if say is not None:
            say(f"{source.name}: {converted}, is loaded once and written as safetensors beside the merge")
        folder = scratch()
        _convert(source, folder, is_reward=reward is not None)
    config = _config_of(folder)
    if getattr(config, "quantization_config", None):
        raise _quantised(source, f"quantization_config: {_quantiser(config.quantization_config)}")
    entries = _own_entries(entries_of(folder), config, source)
    tokenizer = load_tokenizer(folder)
    return OpenModel(source.name, source, folder, entries, config, tokenizer, speech_of(source), reward, converted)


def open_overlay(model: OpenModel, weights: Path, name: str) -> OpenModel:
    """`model` with the tensors of one safetensors file in the place of its own: a checkpoint over its start.

    Raises:
        ModelError: the file holds tensors that the model has not.
    """
    # A value model, say, trains beside the policy and is no part of it.
    ours = {name: entry for name, entry in entries_of_file(weights).items() if "::" not in name}
    if foreign := sorted(set(ours) - set(model.entries)):
        raise ModelError(
            f"the checkpoint `{name}` holds tensors that `{model.name}`, from which its run started, has not",
            where=weights,
            found=f"{len(foreign):,} tensors, `{foreign[0]}` first",
            expected="every weight that trained, by its own name",
            remedy="merge the stage's model folder; a checkpoint of an adapter needs the stage's config.yaml beside it",
        )
    return replace(model, name=name, entries={**model.entries, **ours})


# ---------------------------------------------------------------- the base


def named_base(source: ModelSource) -> str | None:
    """What a folder says that it was trained from: by its adapter's config, or by its manifest; None: it does not."""
    if source.layout == "adapter":
        return adapter_facts(source.folder).base
    saved = (source.manifest or {}).get("base") or {}
    return saved.get("name")


def find_base(sources: list[ModelSource]) -> str:
    """The base that all models name.

    Raises:
        ConfigError: one names none, or they name different ones.
    """
    named = [named_base(source) for source in sources]
    remedy = "say it: `--base FOLDER`, `base: FOLDER` in YAML, `base=` in Python"
    for source, base in zip(sources, named, strict=True):
        if base is None:
            raise ConfigError(
                f"`{source.name}` does not say which model it was trained from",
                where="base",
                found=f"no base in {source.folder}",
                expected="the model that all of them were trained from",
                remedy=remedy,
            )
    places = [_place(base) for base in named]
    for source, place in zip(sources, places, strict=True):
        if place != places[0]:
            raise ConfigError(
                f"`{sources[0].name}` and `{source.name}` were trained from different models",
                where="base",
                found=f"{places[0]} and {place}",
                expected="one model that all of them were trained from",
                remedy=remedy + "; differences to another model than their own start are not what they learnt",
            )
    return str(named[0])


def _place(name: str | None) -> str:
    path = Path(str(name)).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


# ---------------------------------------------------------------- opening


def _what_to_convert(source: ModelSource) -> str | None:
    if source.layout == "gguf":
        return "a GGUF file"
    if source.layout == "adapter":
        facts = adapter_facts(source.folder)
        if not facts.merges:
            raise ConfigError(
                f"an adapter of kind {facts.kind} cannot be folded into the weights, so it cannot be merged",
                where=source.folder,
                remedy="leave it out; only adapters of the weights (LoRA, IA3, OFT) can be merged",
            )
        return f"an adapter of kind {facts.kind} on {base_of(source).name}"
    return None if any(source.folder.glob("*.safetensors")) else "pickled weights"


def _convert(source: ModelSource, scratch: Path, *, is_reward: bool) -> None:
    if is_reward:
        loaded = load_reward_folder(source.folder).loaded
    else:
        loaded = load(source.folder if source.gguf_file is None else source.folder / source.gguf_file)
    with quiet():
        # In fp32, as adapters are folded everywhere: a delta of LoRA is often below half a step of bf16.
        merged_copy(loaded.model).save_pretrained(scratch, max_shard_size="2GB")
        loaded.tokenizer.save_pretrained(scratch)


def _config_of(folder: Path) -> Any:
    model_code = code_runs(folder)
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=model_code)
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(
            "transformers does not take the model's config",
            where=folder / "config.json",
            found=f"{type(error).__name__}: {error}",
            remedy=remedy_of(folder, GET_AGAIN),
        ) from error


def _own_entries(entries: Mapping[str, Entry], config: Any, source: ModelSource) -> dict[str, Entry]:
    """The tensors that a model is made of: each once, none that nobody reads.

    Raises:
        ModelError: weights are quantised, or a tied head is stored with other values than the embeddings.
    """
    odd = next((name for name, entry in entries.items() if entry.dtype not in DTYPES), None)
    if odd is not None:
        raise _quantised(source, f"`{odd}` of type {entries[odd].dtype}")
    kept = {name: entry for name, entry in entries.items() if not name.endswith(RECOMPUTED)}
    head = next((name for name in HEADS if name in kept), None)
    if head is None or not config.get_text_config().tie_word_embeddings:
        return kept
    embeddings = next(_embeddings(kept, head), None)
    if embeddings is None or not torch.equal(read_tensor(kept[head]), read_tensor(kept[embeddings])):
        raise ModelError(
            "config.json says that the output projection is the embeddings, and the files hold two tensors",
            where=source.folder,
            found=f"`{head}`" + (f" and `{embeddings}` differ" if embeddings else " and no embeddings of its shape"),
            remedy="correct `tie_word_embeddings` in config.json",
        )
    return {name: entry for name, entry in kept.items() if name != head}


def _embeddings(entries: Mapping[str, Entry], head: str) -> Iterator[str]:
    ends = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
    return (name for name, entry in entries.items() if name.endswith(ends) and entry.shape == entries[head].shape)


def _quantiser(said: Any) -> str:
    values = said if isinstance(said, Mapping) else vars(said)
    return str(values.get("quant_method", "unknown"))


def _quantised(source: ModelSource, found: str) -> ModelError:
    return ModelError(
        f"the weights of `{source.name}` are quantised, and sums of such codes mean nothing",
        where=source.folder,
        found=found,
        expected="weights in fp32, bf16 or fp16",
        remedy="merge the model as it was before it was quantised, and quantise the result",
    )
