"""Virtual tokens before ordinary rows, for a backbone that is called beneath its `peft` model."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from posttrain.models.adapters.kinds import adapter_kind, virtual_tokens


def backbone_inputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """What the backbone is called with, for rows [B, L] and their mask: a prefix as a filled cache, a prompt as
    embeddings before the rows' own. Without virtual tokens, the rows as they are.

    The hidden states of a prompt's virtual tokens come out too, before those of the rows.
    """
    if not virtual_tokens(model):
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    assert isinstance(model, PeftModel)
    rows = input_ids.shape[0]
    mask = torch.cat([attention_mask.new_ones(rows, virtual_tokens(model)), attention_mask], dim=1)
    if adapter_kind(model) == "prefix":
        return {"input_ids": input_ids, "attention_mask": mask, "past_key_values": model.get_prompt(rows)}
    embeddings = model.get_input_embeddings()(input_ids)
    prompts = model.get_prompt(rows).to(embeddings.dtype)
    return {"inputs_embeds": torch.cat([prompts, embeddings], dim=1), "attention_mask": mask}
