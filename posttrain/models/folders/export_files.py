"""What a save writes: the weights, the tokenizer, the generation config, and what a fresh process must answer.

`export.begin_save` calls `write_model` (reward models bring their own, `reward.export`), `readback` answers in another
process, and `export.PendingSave` compares the answer with `Expected`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from transformers import GenerationConfig

from posttrain.data.speech import Speech, write_speech
from posttrain.data.templates.header import split_header
from posttrain.errors import ExportError
from posttrain.models.adapters.facts import ADAPTER_CONFIG
from posttrain.models.adapters.folding import cpu_copy, merged_copy, record_tying
from posttrain.models.adapters.quantised import is_quantised
from posttrain.models.folders import readback
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource
from posttrain.models.folders.tokenizers import save_tokenizer
from posttrain.sampling import SamplingDistribution

PROBE_TEXT = "Hello! What can you do for me today?"
NEW_TOKENS = 16
SERVED_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields of a distribution that a folder proposes to whoever serves it."""
QUANTISED_SHARE = 0.25
"""Of the largest logit: what computing in 4 or 8 bits may change. bitsandbytes measures 2% to 3% on a random model."""


@dataclass(frozen=True, slots=True)
class SpokenPrompt:
    """A prompt as templates read it, and the ids that training had for it.

    SpokenPrompt([{"role": "user", "content": "Hi"}], (), (1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198))
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What a save is to contain: ExportSettings(merge=True, stop_ids=(2,))."""

    merge: bool = True
    """Fold the adapter into the weights; False saves the adapter alone, beside the name of its base."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end a turn, for `generation_config.json` and `config.json`; those of `speech` if empty, else the
    tokenizer's eos."""
    speech: Speech | None = None
    """How the model is spoken to; None is what its tokenizer says."""
    prompts: tuple[SpokenPrompt, ...] = ()
    """Real prompts of the run with their ids, which plain `transformers` must build from the folder alone."""
    sampling: SamplingDistribution = field(default_factory=SamplingDistribution)
    """What the folder proposes to whoever serves it; by default the plain distribution that was trained."""
    dtype: torch.dtype | None = None
    """Of the saved weights; None keeps the model's. A narrower one rounds, and the report says by how much."""
    max_shard_size: str = "5GB"
    info: Mapping[str, Any] = field(default_factory=dict)
    """Goes into the manifest as `training`."""
    new_tokens: int = NEW_TOKENS


@dataclass(frozen=True, slots=True)
class Expected:
    """What the fresh process is asked, and what it must answer."""

    logits: np.ndarray
    greedy: list[int]
    margins: list[float]
    """How far the most likely token led the second at each position, in logits."""
    probe_ids: list[int]
    tolerance: float
    rounding: float
    request: dict[str, Any]


Writer = Callable[[Any, Any, Path, ExportSettings, ModelSource | None], Expected]
"""(model, tokenizer, folder, settings, base of an adapter alone) -> what the fresh process must answer."""


def write_model(
    model: Any, tokenizer: Any, folder: Path, settings: ExportSettings, adapter_base: ModelSource | None
) -> Expected:
    """The files of a causal LM; see `Writer`."""
    stop_ids = stop_ids_of(settings, tokenizer)
    probe_ids = readback.tokenizer_ids(tokenizer, PROBE_TEXT)
    row = [*probe_ids, *spread_ids(model.get_input_embeddings().weight.shape[0])]
    with quiet(), eval_mode(model):
        # On the CPU, where the fresh process computes: another device rounds differently.
        source = on_cpu(model)
        logits = readback.probe_logits(source, row)
        # Not 0: another number of threads, or a merge, adds in another order. A lost weight moves logits by far more.
        tolerance = 1e-4 + 1e-5 * float(np.abs(logits).max())
        if isinstance(source, PeftModel) and not settings.merge:
            saved, rounding = source, 0.0
            write_adapter(source, folder, adapter_base, settings.dtype)
        else:
            saved, logits, rounding = _whole_model(source, settings.dtype, row, logits)
            if is_quantised(_without_adapter(model)):
                rounding = max(rounding, _dequantisation_error(model, row, logits, folder))
            saved.save_pretrained(folder, max_shard_size=settings.max_shard_size)
        # By the weights that were written: rounded ones may prefer another token, and that is no fault of the save.
        greedy, margins = readback.greedy_ids(saved if rounding else source, probe_ids, stop_ids, settings.new_tokens)
    write_beside_weights(folder, tokenizer, settings)
    request = probe_request(settings, tokenizer, row, saved.dtype)
    return Expected(logits, greedy, margins, probe_ids, tolerance, rounding, request)


def write_beside_weights(folder: Path, tokenizer: Any, settings: ExportSettings) -> None:
    """The files of a causal LM beside its weights and config.json: how it is spoken to, for us and for others."""
    stop_ids = stop_ids_of(settings, tokenizer)
    save_tokenizer(tokenizer, folder)
    _write_generation_config(folder, tokenizer, stop_ids, settings.sampling)
    write_stop_ids(folder, stop_ids)
    write_speech_record(folder, tokenizer, stop_ids, settings)


def probe_request(settings: ExportSettings, tokenizer: Any, row: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """What the fresh process is asked of a causal LM: the logits of `row`, and a greedy answer to the probe."""
    return {
        **prompt_request(settings),
        "row": row,
        "prompt": readback.tokenizer_ids(tokenizer, PROBE_TEXT),
        "stop_ids": stop_ids_of(settings, tokenizer),
        "new_tokens": settings.new_tokens,
        "text": PROBE_TEXT,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def stop_ids_of(settings: ExportSettings, tokenizer: Any) -> list[int]:
    """The ids that end an answer, all that are known."""
    stated = list(settings.stop_ids) or list(settings.speech.stop_ids if settings.speech is not None else ())
    return stated or ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])


def prompt_request(settings: ExportSettings) -> dict[str, Any]:
    """The part of the request that has plain `transformers` build the run's own prompts.

    Bare text (`template: raw`) has no template that `transformers` would take, so there is nothing to compare."""
    if settings.speech is not None and settings.speech.template == "raw":
        return {"prompts": [], "prompt_ids": []}
    return {
        "prompts": [{"messages": list(prompt.messages), "tools": list(prompt.tools)} for prompt in settings.prompts],
        "prompt_ids": [list(prompt.ids) for prompt in settings.prompts],
    }


def write_speech_record(folder: Path, tokenizer: Any, stop_ids: Sequence[int], settings: ExportSettings) -> None:
    """posttrain_speech.json: what the stage says, or what the tokenizer says where no stage does."""
    # Written for every model: a folder without a record is read as a foreign one, by guesses from its other files.
    speech = settings.speech or Speech("chat", tokenizer.chat_template, recorded=False)
    if settings.speech is None and tokenizer.chat_template:
        (values, date), _ = split_header(tokenizer.chat_template)
        speech = replace(speech, template_kwargs=values, date=date)
    sampling = {key: value for key, value in asdict(settings.sampling).items() if key in SERVED_FIELDS}
    texts = tuple(tokenizer.decode([number]) for number in stop_ids)
    write_speech(folder, replace(speech, stop_ids=tuple(stop_ids), stop_texts=texts, sampling=sampling))


def write_stop_ids(folder: Path, stop_ids: Sequence[int]) -> None:
    """All ids that end an answer into config.json too, which engines read that ignore generation_config.json."""
    path = folder / "config.json"
    if not path.is_file() or not stop_ids:  # an adapter alone has none
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        if part is config or "eos_token_id" in part:
            part["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def on_cpu(model: Any) -> Any:
    """The model where the fresh process computes; weights in 4 or 8 bits as the full ones that they stand for."""
    if is_quantised(_without_adapter(model)):
        return merged_copy(model)
    return model if model.device.type == "cpu" else cpu_copy(model)


def _without_adapter(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _dequantisation_error(model: Any, row: list[int], logits: np.ndarray, folder: Path) -> float:
    """How far the full weights are from the quantised ones, which compute in fewer bits; weights that were read wrongly
    are much further."""
    quantised = readback.probe_logits(model, row)
    difference, allowed = float(np.abs(quantised - logits).max()), QUANTISED_SHARE * float(np.abs(quantised).max())
    if not difference <= allowed:
        raise ExportError(
            "the full weights compute something else than the quantised ones that were trained over",
            where=folder,
            found=f"largest logit difference {difference:.3g}, allowed {allowed:.3g}",
            remedy="the checkpoint holds the adapter; train with `kind: lora` if this stays",
        )
    return difference


def _whole_model(
    model: Any, dtype: torch.dtype | None, row: list[int], logits: np.ndarray
) -> tuple[Any, np.ndarray, float]:
    """The plain model to save, the logits it must read back with, and what rounding in its dtype changed."""
    target = dtype or model.dtype
    if target == model.dtype and not isinstance(model, PeftModel):
        record_tying(model)
        return model, logits, 0.0
    saved = merged_copy(model, target)
    if target == model.dtype and target in (torch.float32, torch.float64):
        return saved, logits, 0.0  # the fresh process shows whether merging changed anything

    # In a narrow dtype the file is compared with the rounded weights, which it must hold exactly; how far these are
    # from the trained ones is reported apart.
    rounded = readback.probe_logits(saved, row)
    return saved, rounded, float(np.abs(rounded - logits).max())


def spread_ids(rows: int) -> list[int]:
    """Ids from all over a vocabulary, its last rows among them: tokens that were added later lie there."""
    spread = np.linspace(0, rows - 1, num=min(12, rows), dtype=int).tolist()
    return [*spread, *range(max(0, rows - 4), rows)]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    # Module by module: parts that somebody froze stay in eval while the rest trains, and must come back so.
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def write_adapter(
    model: PeftModel,
    folder: Path,
    base: ModelSource | None,
    dtype: torch.dtype | None,
    *,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """The adapter's own files, with a base that plain `peft` finds: a hub id or an absolute path.

    Args:
        state: the adapter's tensors by their names in the model; None: the model's own.
    """
    merge_remedy = "save merged (`merge: true`)"
    if dtype not in (None, model.dtype):
        raise ExportError(
            "an adapter alone keeps its own precision",
            where=folder,
            found=f"{dtype} was asked for",
            remedy=merge_remedy,
        )
    if base is None or base.layout != "model":
        raise ExportError(
            "an adapter alone needs a base that others can load",
            where=folder,
            found="no base" if base is None else f"a base of kind {base.layout}",
            remedy=merge_remedy,
        )

    rows = model.get_input_embeddings().weight.shape[0]
    base_rows = json.loads((base.folder / "config.json").read_text(encoding="utf-8")).get("vocab_size", rows)
    lost = sorted(set(range(base_rows, rows)) - carried_rows(model))
    if lost or rows < base_rows:
        raise ExportError(
            "tokens were added to the base, and an adapter alone does not carry their embeddings",
            where=folder,
            found=f"{rows:,} rows in memory, {base_rows:,} in {base.folder}"
            + (f"; row {lost[0]:,} is not the adapter's" if lost else ""),
            remedy=merge_remedy,
        )

    # False: `peft` would ask the hub for the base's vocabulary, and save embeddings that did not change.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in, not a description
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.loadable_name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def carried_rows(model: PeftModel) -> set[int]:
    """The ids whose rows the adapter holds, at every end of the model: those of new tokens that trained beside it, or
    all of them where whole embeddings did."""
    carried: list[set[int]] = []
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(end, TrainableTokensWrapper):
            carried.append({int(row) for row in end.token_adapter.token_indices[model.active_adapter]})
        elif isinstance(end, ModulesToSaveWrapper):
            carried.append(set(range(end.weight.shape[0])))
        elif end is not None:
            return set()
    return set.intersection(*carried)


def _write_generation_config(
    folder: Path, tokenizer: Any, stop_ids: Sequence[int], sampling: SamplingDistribution
) -> None:
    """Stop ids and sampling for whoever serves the folder; vLLM and transformers both read them here.

    Every field is written, because a field left out means something else in each engine: without `top_k`,
    `transformers` cuts to the 50 best.
    """
    drawn = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p,
    }
    # Engines that pad need an id; a stop stands in, since padding is masked in any case.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stop_ids), None)
    config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids[0] if len(stop_ids) == 1 else list(stop_ids) or None,
        pad_token_id=pad,
        do_sample=not sampling.is_greedy,
        repetition_penalty=sampling.repetition_penalty,
        **({} if sampling.is_greedy else drawn),
    )
    with quiet():
        config.save_pretrained(folder)
