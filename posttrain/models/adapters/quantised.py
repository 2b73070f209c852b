"""QLoRA's base (Dettmers et al. 2023, arXiv:2305.14314): weights in 4 or 8 bits, and the plain model they stand for.

`loading` quantises while it loads, `folding` merges into the dequantised weights, and an export saves those.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_bnb_weight
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from posttrain.config.adapters import QLoRA
from posttrain.errors import ConfigError, MissingExtraError
from posttrain.models.folders.own_code import ran_own_code


def require_quantisation(device: torch.device) -> None:
    """Before anything is loaded: is there what 4 and 8 bit weights need?

    Raises:
        ConfigError: the device is no CUDA device.
        MissingExtraError: bitsandbytes is not installed.
    """
    if device.type != "cuda":
        raise ConfigError(
            "qlora needs a CUDA device",
            where="adapter.kind",
            found=str(device),
            expected="cuda, with the package bitsandbytes",
            remedy="write `adapter: {kind: lora}`, which computes the same update over the full weights",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            "qlora needs the package bitsandbytes",
            where="adapter.kind",
            remedy="pip install bitsandbytes, or write `adapter: {kind: lora}`",
        )


def quantisation(qlora: QLoRA) -> BitsAndBytesConfig:
    """How the frozen weights are kept. The embeddings, norms and the output projection keep their precision."""
    if qlora.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    # NF4 and double quantisation are the paper's. fp16 is no choice where bf16 is missing: its range is too small for
    # the activations of models that were trained in bf16.
    compute = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=qlora.double_quant,
        bnb_4bit_compute_dtype=compute,
    )


def is_quantised(model: Any) -> bool:
    """Whether a model of `transformers` keeps its weights in 4 or 8 bits."""
    return bool(getattr(model, "is_quantized", False))


@torch.no_grad()
def dequantised(causal_lm: Any) -> Any:
    """A plain model on the CPU with the weights that the quantised ones stand for; the model is left as it is.

    An adapter's layers are not carried over: pass the model beneath it.
    """
    # Built anew from the config: `model.dequantize()` of `transformers` works in place, on a model that trains on.
    settings = causal_lm.config.to_dict()
    kept = {key: settings[key] for key in settings if key not in ("quantization_config", "_model_name_or_path")}
    config = type(causal_lm.config).from_dict(kept)
    if ran_own_code(causal_lm):  # the class is here, and the folder that it came from is no longer named
        plain = type(causal_lm)(config)
    else:
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)

    weights = {name.replace(".base_layer.", "."): p for name, p in causal_lm.named_parameters()}
    for name, module in causal_lm.named_modules():
        # By name, because bitsandbytes is not installed everywhere; `peft`'s own layer around one has a like name.
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt") and not isinstance(module, BaseTunerLayer):
            weights[f"{name}.".replace(".base_layer.", ".") + "weight"] = _dequantised_weight(module)

    for name, parameter in plain.named_parameters():
        parameter.copy_(weights[name].detach().to("cpu", torch.float32))
    # Buffers too: dynamic rotary scaling changes its frequencies as rows get longer.
    buffers = dict(causal_lm.named_buffers())
    for name, buffer in plain.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
    return plain.eval()


def _dequantised_weight(module: Any) -> torch.Tensor:
    """The weight that a layer of bitsandbytes stands for; 8 bits keep their scales beside it, in the layer's state."""
    state = module.state if type(module).__name__ == "Linear8bitLt" else None
    return dequantize_bnb_weight(module.weight, state=state)
