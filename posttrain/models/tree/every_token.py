"""Every token that a row holds gets its gradient, whatever id the config calls padding.

Rows are padded behind an attention mask, so the pad token needs no treatment of its own. `nn.Embedding` gives it one:
the embedding of `padding_idx`, which `transformers` takes from `config.pad_token_id`, never gets a gradient. Where the
pad token ends a turn (SmolLM2, many fine-tunes of Llama 3), the token that the model has to learn to stop with would
stay as it was, and two folders that differ in that id alone would train differently, in silence.

The config is left as it is: what is exported names the same pad token as what was loaded.
"""

from __future__ import annotations

from peft import PeftModel
from torch import nn


def count_every_token(model: nn.Module) -> None:
    """Make the embeddings of `model` forget their padding id, copies that an adapter trains among them.

    An embedding whose own forward computes with the id (ProphetNet's positions are counted from it) keeps it.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and not _computes_with_it(module):
            module.padding_idx = None


def _computes_with_it(embedding: nn.Embedding) -> bool:
    """Whether a subclass reads `padding_idx` in a forward of its own, rather than leave it to the gradient."""
    own = (vars(kind).get("forward") for kind in type(embedding).__mro__ if kind is not nn.Embedding)
    codes = (getattr(forward, "__code__", None) for forward in own)
    return any(code is not None and "padding_idx" in code.co_names for code in codes)


def frozen_weights(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of weights that do not train although no adapter stands in for them: (frozen, packed).

    Packed ones are no floats: the folder holds a quantised model, whose weights have no gradient at all. A fixed table
    of positions (Pegasus, Marian), which nobody trains, is in neither.
    """
    if isinstance(model, PeftModel):
        return [], []
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    still = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    learned = [(name, p) for name, p in still if "Position" not in kinds[name.rpartition(".")[0]]]
    packed = [name for name, p in learned if not p.is_floating_point()]
    return [name for name, p in learned if p.is_floating_point()], packed
