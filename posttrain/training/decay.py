"""Which parameters weight decay pulls towards zero: those of linear maps, by what they are and not by their shape.

Decay makes sense where zero means that nothing comes through: the weights of a linear layer, a convolution, an expert
or a router, and the factors of a low-rank change. It does harm where zero is not the neutral value, or where nothing
pulls back:

- scales (norms, IA3's vectors, DoRA's magnitudes, layer scales, AdaLoRA's singular values): the neutral value of most
  is 1, and a decayed one shrinks what the whole layer says;
- biases, and constants of a recurrence (Mamba's A_log): offsets and time constants, not maps;
- embeddings of tokens, positions and virtual tokens: most of a vocabulary never occurs in a post-training data set,
  so that decay alone would move those rows. A head that is tied to them is the same tensor, and goes with them.

The shape does not tell: IA3's vectors are [1, n], the biases of gpt-oss' experts [E, n], Cohere's norms [heads, n];
and the factor of a LoRA of rank 1, also [1, n], is a map.

Deviation: `transformers`' Trainer, and so TRL, decays embeddings and all of an adapter but its biases; Loshchilov and
Hutter 2019 decay everything.
"""

from __future__ import annotations

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MAPS = (nn.Linear, nn.Bilinear, Conv1D, *_CONVOLUTIONS, nn.RNNBase, nn.RNNCellBase)
"""Modules whose `weight...` is a map, whatever its shape: a reward head is a Linear of one row."""
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)

FACTORS = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "oft_R"})
"""Parts of `peft` that are matrices of a change: at zero they change nothing. They lie in a ParameterDict, or in a
module of their own, so that the type of what holds them says nothing."""
SCALES = frozenset({"ia3_l", "lora_E", "lora_magnitude_vector", "trainable_tokens_delta"})
"""Parts of `peft` that are scales, or rows of an embedding."""

_NO_MAP = re.compile(
    r"(^|_)(bias(es)?|norms?|scales?|scaling|gamma|beta|embed(ding)?s?|pos|positions?|tokens?|sinks?|log|decay|mix)(_|$)"
)
"""Words in the name of a bare parameter, one that a module holds itself, that say that it is none."""


def decays(model: nn.Module) -> frozenset[str]:
    """Names of the parameters, as `model.named_parameters()` has them, that weight decay applies to.

    decays(llama) -> {"model.layers.0.self_attn.q_proj.weight", ..., "lm_head.weight"}; a parameter that stands in two
    places, such as a tied head, decays only where it is a map in both.
    """
    kept = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if not _is_map(model, name, p)}
    return frozenset(name for name, p in model.named_parameters() if id(p) not in kept)


def _is_map(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    path, _, leaf = name.rpartition(".")
    parts = set(name.split("."))
    if parts & SCALES or vars(parameter).get("_no_weight_decay"):  # the mark that state space models set themselves
        return False
    if parts & FACTORS:
        return True
    owner = model.get_submodule(path)
    if isinstance(owner, LOOKUPS) or "norm" in type(owner).__name__.lower():
        return False
    if isinstance(owner, MAPS):
        return leaf.startswith("weight")
    # A bare parameter: a vector under any number of dimensions ([1, 1, n] in RWKV) is no map.
    wide = sum(size > 1 for size in parameter.shape)
    return wide >= 2 and not _NO_MAP.search(leaf.lower())
