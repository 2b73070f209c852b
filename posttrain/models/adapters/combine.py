"""One whole model of a base and its adapters, read back before it has its name.

    merge_adapters("runs/mine/sft/model", "merged")                                   # an adapter and its own base
    merge_adapters("smollm2-135m", "merged", adapters=["a", "b"], weights=[0.5, 0.5])

Several adapters become one by `peft`'s `add_weighted_adapter`. With `cat` the update is exactly sum of w_i B_i A_i.
`linear` adds the factors, so that products of one adapter's B with another's A come along; `svd` is the best
approximation of `cat` at the largest rank; ties (Yadav et al. 2023, arXiv:2306.01708), dare (Yu et al. 2023,
arXiv:2311.03099) and magnitude_prune drop entries first, `density` of them stay.

`posttrain merge` ends here. Everything is checked by the files' own words before a model is loaded; folding is
`folding.merged_copy`, called by the save.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from posttrain.data.speech import Speech
from posttrain.errors import ConfigError
from posttrain.models.adapters.facts import ADAPTER_CONFIG, adapter_facts
from posttrain.models.adapters.folders import check_base, load_adapter, misfit
from posttrain.models.adapters.methods import EXACT, METHODS, PRUNING, SAME_RANK, require_method
from posttrain.models.folders.export import ExportReport, ExportSettings, save_model
from posttrain.models.folders.fingerprint import base_fingerprint
from posttrain.models.folders.hub import Say
from posttrain.models.folders.loading import load
from posttrain.models.folders.manifest import refuse_foreign
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource, base_of, resolve
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import has_tokenizer, load_tokenizer

COMBINED = "combined"
NOT_COMBINED = ("use_dora", "use_rslora", "lora_bias", "modules_to_save", "trainable_token_indices")
"""Settings of LoRA that `peft`'s mixing passes over: it combines the factors and drops the rest without a word."""


def merge_adapters(
    start: str | Path,
    out: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    weights: Sequence[float] = (),
    method: str = EXACT,
    density: float = 0.5,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    say: Say | None = None,
) -> ExportReport:
    """Fold adapters into their base and save the whole model.

    Args:
        start: a base model, or an adapter's folder, which then is the first adapter, on the base that it names.
        adapters: folders of (further) adapters.
        weights: one for each adapter, the start's first; all 1 if empty.
        method: how several become one; see `METHODS`.
        density: share of entries that the methods of `PRUNING` keep.
        dtype: of the saved weights; fp32 if None.
        seed: of what dare drops.

    Raises:
        ConfigError: nothing to merge, a kind that cannot be merged or combined, or settings that do not fit.
        ModelError: a folder cannot be loaded, or an adapter belongs to another base.
        ExportError: what was saved is not what was merged.
    """
    source = resolve(start, say=say)
    starts_with_adapter = source.layout == "adapter"
    parts = [*([source] if starts_with_adapter else []), *(resolve(name, say=say) for name in adapters)]
    _check_out(Path(out), [source, *parts])
    _check_request(source, parts, weights, method, density)

    base = base_of(source, say) if starts_with_adapter else source
    loaded = load(base.folder if base.gguf_file is None else base.folder / base.gguf_file, say=say)
    model: Any = load_adapter(loaded.model, base, parts[0], tokenizer=loaded.tokenizer)
    if len(parts) > 1 or any(weight != 1 for weight in weights):
        _combine(model, base, parts, list(weights) or [1.0] * len(parts), method, density, seed)

    # The first adapter's tokenizer: training may have changed the template, and the base's still has the old one.
    tokenizer = load_tokenizer(parts[0].folder) if has_tokenizer(parts[0].folder) else loaded.tokenizer
    names = [part.name for part in parts]
    info = {"merged": {"base": base.name, "adapters": names, "weights": list(weights), "method": method}}
    speech = _merged_speech(parts, tokenizer, say)
    settings = ExportSettings(dtype=dtype, speech=speech, stop_ids=speech.stop_ids, info=info)
    return save_model(model.eval(), tokenizer, out, settings, base=base)


def _combine(
    model: PeftModel,
    base: ModelSource,
    parts: Sequence[ModelSource],
    weights: list[float],
    method: str,
    density: float,
    seed: int,
) -> None:
    """Put the other adapters on, and switch to the one that stands for all."""
    # The base beneath the first adapter, for the others must have been trained on these weights too.
    fingerprint, names = base_fingerprint(model), [model.active_adapter]
    for index, part in enumerate(parts[1:], start=1):
        check_base(fingerprint, str(model.dtype), base, part)
        names.append(f"adapter_{index}")
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                model.load_adapter(part.folder, names[-1])
        except Exception as error:
            raise misfit(part, base, error) from error
    _check_ranks(model, names, method)
    options = {"density": density} if method in PRUNING else {}
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # dare draws what it drops from the global stream
            model.add_weighted_adapter(names, weights, COMBINED, combination_type=method, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"these adapters cannot be combined by {method}",
            where="--method",
            found=f"{type(error).__name__}: {error}",
            remedy=f"use --method {EXACT}",
        ) from error
    model.set_adapter(COMBINED)


# ---------------------------------------------------------------- what is refused


def _check_out(out: Path, sources: Sequence[ModelSource]) -> None:
    refuse_foreign(out)
    for source in sources:
        if out.resolve() == source.folder.resolve():
            raise ConfigError(
                "the merged model would replace what it is made of", where=out, remedy="name another folder"
            )


def _check_request(
    source: ModelSource, parts: Sequence[ModelSource], weights: Sequence[float], method: str, density: float
) -> None:
    if not parts:
        raise ConfigError(
            "there is no adapter to merge",
            where=source.folder,
            found="a whole model",
            remedy="give an adapter's folder, or name adapters with --adapter; of whole models name two or more",
        )
    require_method(method)
    if weights and len(weights) != len(parts):
        raise ConfigError(
            "there is not one weight for each adapter",
            where="--weights",
            found=f"{len(weights)} weights, {len(parts)} adapters: {', '.join(part.name for part in parts)}",
            remedy="give one weight per adapter, the start's first, or none",
        )
    if not 0 < density <= 1:
        raise ConfigError(
            "the density is a share", where="--density", found=density, expected="0 < density <= 1", remedy="write 0.5"
        )
    combined = len(parts) > 1 or any(weight != 1 for weight in weights)
    for part in parts:
        _check_part(part, combined)


def _check_part(part: ModelSource, combined: bool) -> None:
    if part.layout != "adapter":
        raise ConfigError(
            "this is no adapter", where=part.folder, found=f"a folder of kind {part.layout}", remedy="name adapters"
        )
    facts = adapter_facts(part.folder)
    if not facts.merges:
        raise ConfigError(
            f"an adapter of kind {facts.kind} cannot be folded into the weights",
            where=part.folder,
            remedy="load it with peft as it is; only adapters of the weights can be merged",
        )
    if not combined:
        return
    config = json.loads((part.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    passed_over = [key for key in NOT_COMBINED if config.get(key)]
    if facts.kind != "lora" or passed_over:
        raise ConfigError(
            "only plain LoRA adapters can be weighted or combined",
            where=part.folder,
            found=f"kind {facts.kind}" + (f" with {', '.join(passed_over)}" if passed_over else ""),
            remedy="merge this adapter alone, and train or merge the others over the result",
        )


def _check_ranks(model: PeftModel, names: Sequence[str], method: str) -> None:
    # These methods add the factors entry by entry, and matrices of different ranks have no common entries.
    ranks = [int(model.peft_config[name].r) for name in names]
    if method in SAME_RANK and len(set(ranks)) > 1:
        raise ConfigError(
            f"{method} combines adapters of one rank",
            where="--method",
            found=f"ranks {', '.join(map(str, ranks))}",
            remedy=f"use --method {EXACT}" + (f", or {method}_svd" if f"{method}_svd" in METHODS else ", or svd"),
        )


def _merged_speech(parts: Sequence[ModelSource], tokenizer: Any, say: Say | None) -> Speech:
    """As the first adapter is spoken to, whose tokenizer the merged model has; each difference to another is said."""
    first, *others = [speech_of(part) for part in parts]
    for part, other in zip(parts[1:], others, strict=True):
        if (differences := first.differences(other)) and say is not None:
            say(
                f"{parts[0].name} and {part.name} were trained to be spoken to differently "
                f"({'; '.join(differences)}): the merged model is spoken to as the first"
            )
    # A chat template is written out: without the adapter's folder nothing else would say which one it was.
    if first.source is None and first.template != "raw":
        first = replace(first, source=tokenizer.chat_template)
    return first
