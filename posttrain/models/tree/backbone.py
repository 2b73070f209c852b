"""The layers below a model's head."""

from __future__ import annotations

from typing import Any

from posttrain.errors import ModelError


def backbone(model: Any) -> Any:
    """What turns ids into hidden states: `base_model`, and where that is the model itself, the child that embeds.

    Llama 4 and Mllama name a `base_model_prefix` that their text models do not have, so that `base_model` gives logits.

    Raises:
        ModelError: the model has no such part.
    """
    base = model.base_model
    if base is not model:
        return base
    embeddings = model.get_input_embeddings()
    # Whatever embeds the ids and is more than the embedding: its name differs from family to family.
    for child in model.children():
        if child is not embeddings and any(module is embeddings for module in child.modules()):
            return child
    raise ModelError(
        f"{type(model).__name__} has no backbone of its own below its head",
        expected="a model whose `base_model` gives hidden states",
        remedy="use another architecture, or log-probs alone (no value or reward head)",
    )
