"""An adapter's record as the configuration that `peft` takes: one function per kind, in `BUILDERS`.

Between a recipe's `adapter` (posttrain.config.adapters) and `kinds.add_adapter`. What `peft` would guess, ignore or
match by accident is decided or refused here: targets that match nothing, the layout of GPT-2's weights, a name that
would be read as an expression.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from posttrain.config.adapters import (
    IA3,
    OFT,
    AdaLoRA,
    AdapterSettings,
    Bottleneck,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    QLoRA,
)
from posttrain.errors import ConfigError
from posttrain.models.adapters.bottleneck import BottleneckConfig, register

ALL_LINEAR = "all-linear"
AUTO = "auto"
ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding)
OUTPUT_LAYERS = ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "out_proj", "fc2", "w2", "wo")
"""What architectures call the last layer of an attention or of a feed-forward."""
UNPLANNED_STEPS = 1_000_000_000
"""AdaLoRA's schedule wants the number of steps; the training loop states it (posttrain.training.rank_allocation)."""

TASK = "CAUSAL_LM"


def peft_config(model: nn.Module, adapter: AdapterSettings, new_rows: Sequence[int] = ()) -> PeftConfig:
    """What `peft` puts on `model` for this record.

    Args:
        new_rows: ids of new tokens, whose rows train beside the adapter.

    Raises:
        ConfigError: a target matches no module of the model, `auto` does not know its architecture, or the rows cannot
            train beside this adapter.
    """
    config = BUILDERS[adapter.kind](model, adapter)
    if new_rows:
        _require_trainable_rows(model, adapter, new_rows)
        assert isinstance(config, LoraConfig)  # AdaLoRA's is one
        # Rows and not whole embeddings (`modules_to_save`): a vocabulary is often the largest tensor of a model, and
        # every row of it would move that the data holds.
        config.trainable_token_indices = {name: list(new_rows) for name in _end_names(model)}
    if type(model).__name__.endswith("ForSequenceClassification"):
        config.task_type = "SEQ_CLS"  # `peft` then trains and saves the head beside the adapter
    return config


def _end_names(model: Any) -> list[str]:
    """What the model calls its embeddings, and its output projection unless it shares their weights: `peft` keeps
    tied ends together by itself."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [embeddings, *([head] if head is not None and head.weight is not embeddings.weight else [])]
    return [next(name for name, module in model.named_modules() if module is end) for end in ends]


def _require_trainable_rows(model: Any, adapter: AdapterSettings, new_rows: Sequence[int]) -> None:
    """Refuse what `peft` would compute wrongly, or not at all."""
    if not adapter.TRAINS_TOKENS:
        raise ConfigError(
            f"beside an adapter of kind {adapter.kind} the rows of new tokens would stay as they begin",
            where="tokens",
            found=f"{len(new_rows)} new tokens",
            remedy="choose `kind: lora` or `adalora`, or train all weights",
        )
    head = model.get_output_embeddings()
    # Its layer of trained rows multiplies by the weight alone and leaves a bias out (Phi-2 has one).
    if head is not None and getattr(head, "bias", None) is not None:
        raise ConfigError(
            "the rows of new tokens cannot train beside an adapter where the output projection has a bias",
            where="tokens",
            found=type(model).__name__,
            remedy="train all weights, or add the tokens in a first stage without an adapter",
        )
    targets = adapter.targets  # type: ignore[attr-defined]  # both kinds have them
    ends = [end for end in (model.get_input_embeddings(), head) if end is not None]
    twice = [name for name, module in matching_modules(model, targets).items() if any(module is end for end in ends)]
    if twice:
        left_out = " and ".join(name.rsplit(".", 1)[-1] for name in twice)
        raise ConfigError(
            "the adapter sits on the embeddings, and so do the rows of the new tokens",
            where="adapter.targets",
            found=", ".join(twice),
            remedy=f"leave {left_out} out of `targets`: the new rows train anyway",
        )


def _lora(model: nn.Module, lora: LoRA | QLoRA) -> LoraConfig:
    options: dict[str, Any] = {}
    if isinstance(lora, LoRA):
        options = {
            "use_dora": lora.dora,
            "use_rslora": lora.rslora,
            "init_lora_weights": True if lora.init == "default" else "gaussian",
        }
    return LoraConfig(
        task_type=TASK, r=lora.rank, lora_dropout=lora.dropout, **_alpha(lora.alpha), **_targets(model, lora), **options
    )


def _adalora(model: nn.Module, adalora: AdaLoRA) -> AdaLoraConfig:
    return AdaLoraConfig(
        task_type=TASK,
        init_r=adalora.initial_rank,
        target_r=adalora.rank,
        deltaT=adalora.every_steps,
        orth_reg_weight=adalora.orthogonality,
        total_step=UNPLANNED_STEPS,
        lora_dropout=adalora.dropout,
        **_alpha(adalora.alpha),
        **_targets(model, adalora),
    )


def _ia3(model: nn.Module, ia3: IA3) -> IA3Config:
    kind = _architecture(model)
    feedforward = [ia3.feedforward] if isinstance(ia3.feedforward, str) else list(ia3.feedforward)
    if ia3.targets == AUTO:
        if kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
            raise _no_default(model, "ia3", "targets: [k_proj, v_proj, down_proj], feedforward: [down_proj]")
        targets: Any = list(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind])
        feedforward = feedforward or list(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind])
    else:
        targets = ia3.targets

    # (IA)^3 scales the input of a feed-forward's last layer and the output of others (Liu et al. 2022,
    # arXiv:2205.05638). One that is named here and is no target gets no scale at all.
    targeted = matching_modules(model, targets)
    feedforward_layers = matching_modules(model, feedforward) if feedforward else {}
    outside = sorted(name for name in feedforward_layers if name not in targeted)
    if outside:
        raise ConfigError(
            "a module of `feedforward` is no target",
            where="adapter.feedforward",
            found=outside[0],
            remedy="name it in `adapter.targets` too",
        )
    return IA3Config(
        task_type=TASK,
        target_modules=_peft_targets(targets),
        feedforward_modules=feedforward,
        fan_in_fan_out=_transposed(targeted),
    )


def _oft(model: nn.Module, oft: OFT) -> OFTConfig:
    return OFTConfig(task_type=TASK, oft_block_size=oft.block_size, module_dropout=oft.dropout, **_targets(model, oft))


def _bottleneck(model: nn.Module, bottleneck: Bottleneck) -> BottleneckConfig:
    register()
    targets = bottleneck.targets
    # As in the paper, one after attention and one after the feed-forward: behind the last layer of each.
    if targets == AUTO:
        last = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, ADAPTABLE)}
        targets = tuple(name for name in OUTPUT_LAYERS if name in last)
        if not targets:
            raise _no_default(model, "bottleneck", "targets: [o_proj, down_proj]")
    matching_modules(model, targets)
    return BottleneckConfig(
        task_type=TASK,
        size=bottleneck.size,
        activation=bottleneck.activation,
        dropout=bottleneck.dropout,
        target_modules=_peft_targets(targets),
    )


def _prefix(model: nn.Module, prefix: PrefixTuning) -> PrefixTuningConfig:
    return PrefixTuningConfig(
        task_type=TASK,
        num_virtual_tokens=prefix.tokens,
        prefix_projection=prefix.projection is not None,
        encoder_hidden_size=prefix.projection,
    )


def _prompt(model: nn.Module, prompt: PromptTuning) -> PromptTuningConfig:
    # `peft`'s own TEXT would fetch a tokenizer by name; `kinds.add_adapter` starts from a text with the one at hand.
    init = "SAMPLE_VOCAB" if prompt.init == "vocabulary" else "RANDOM"
    return PromptTuningConfig(task_type=TASK, num_virtual_tokens=prompt.tokens, prompt_tuning_init=init)


def _p_tuning(model: nn.Module, p_tuning: PTuning) -> PromptEncoderConfig:
    return PromptEncoderConfig(
        task_type=TASK,
        num_virtual_tokens=p_tuning.tokens,
        encoder_reparameterization_type=p_tuning.encoder.upper(),
        encoder_hidden_size=p_tuning.hidden,
    )


BUILDERS: Mapping[str, Callable[[Any, Any], PeftConfig]] = {
    "lora": _lora,
    "qlora": _lora,
    "adalora": _adalora,
    "ia3": _ia3,
    "oft": _oft,
    "bottleneck": _bottleneck,
    "prefix": _prefix,
    "prompt": _prompt,
    "p_tuning": _p_tuning,
}


def _alpha(alpha: float) -> dict[str, Any]:
    """`peft` writes alpha as it is given; 32 reads better than 32.0 and vLLM wants whole numbers."""
    return {"lora_alpha": int(alpha) if float(alpha).is_integer() else alpha}


def _targets(model: nn.Module, adapter: LoRA | QLoRA | AdaLoRA | OFT) -> dict[str, Any]:
    # Matched here although `peft` matches again: it accepts a list of which one name matches, and an adapter on half of
    # the layers that were meant trains worse without a sign.
    targeted = matching_modules(model, adapter.targets)
    return {
        "target_modules": adapter.targets if adapter.targets == ALL_LINEAR else _peft_targets(adapter.targets),
        "fan_in_fan_out": _transposed(targeted),
    }


def _transposed(modules: Mapping[str, nn.Module]) -> bool:
    """GPT-2's layers store their weights as [in, out]."""
    return any(isinstance(module, Conv1D) for module in modules.values())


def _architecture(model: Any) -> str:
    return str(model.config.model_type)


def _no_default(model: nn.Module, kind: str, example: str) -> ConfigError:
    return ConfigError(
        f"`auto` does not know where {kind} belongs in this architecture",
        where="adapter.targets",
        found=_architecture(model),
        example=example,
        remedy="name the modules in `adapter.targets`",
    )


# ---------------------------------------------------------------- targets


def matching_modules(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """The modules that `targets` names, by their full names.

    Raises:
        ConfigError: a name or the expression matches nothing that an adapter can sit on; the nearest names are given.
    """
    adaptable = {name: module for name, module in model.named_modules() if isinstance(module, ADAPTABLE)}
    # The output projection is left out, as `peft` does: an adapter there is as wide as the vocabulary.
    if targets == ALL_LINEAR:
        head = model.get_output_embeddings()  # type: ignore[operator]
        return {n: m for n, m in adaptable.items() if m is not head and not isinstance(m, nn.Embedding)}
    wanted = _peft_targets(targets)
    if isinstance(wanted, str):
        matched = {name: module for name, module in adaptable.items() if _compiled(wanted).fullmatch(name)}
        if not matched:
            raise _unmatched([wanted], adaptable)
        return matched

    missing = [target for target in wanted if not any(_is_named(name, target) for name in adaptable)]
    if missing:
        raise _unmatched(missing, adaptable)
    return {name: m for name, m in adaptable.items() if any(_is_named(name, target) for target in wanted)}


def _peft_targets(targets: str | Sequence[str]) -> str | list[str]:
    """`peft` reads a string as an expression over whole names; a plain name is meant as a name."""
    if isinstance(targets, str):
        return [targets] if re.fullmatch(r"\w+", targets) else targets
    return list(targets)


def _is_named(module: str, target: str) -> bool:
    """`peft`'s own rule for lists: the whole name, or its last words. A part of a word ("proj") matches nothing."""
    return module == target or module.endswith(f".{target}")


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(
            "not a regular expression",
            where="adapter.targets",
            found=f"{expression!r}: {error}",
            remedy="correct it, or give a list of module names",
        ) from error


def _unmatched(missing: list[str], adaptable: dict[str, nn.Module]) -> ConfigError:
    names = sorted({name.rsplit(".", 1)[-1] for name in adaptable})
    close = list(_nearest_names(missing, names))
    return ConfigError(
        "no module of this model has this name",
        where="adapter.targets",
        found=", ".join(repr(target) for target in missing),
        expected=f"one of {', '.join(names)}",
        example=f"targets: [{', '.join(close)}]" if close else "targets: all-linear",
        remedy="name modules of this model" + (f"; the nearest are {', '.join(close)}" if close else ""),
    )


def _nearest_names(missing: list[str], names: list[str]) -> Iterator[str]:
    for target in missing:
        yield from difflib.get_close_matches(target.rsplit(".", 1)[-1], names, n=2, cutoff=0.5)
