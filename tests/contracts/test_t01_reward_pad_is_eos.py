"""T01 for reward models: where the pad token ends every turn, a response is still scored at its end.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.data.reward_encode import RewardEncoder
from posttrain.data.trees import collate
from posttrain.models.reward.folders import pad_id
from posttrain.models.tree.heads import ScoreModel, with_head
from tests.encoding import pair
from tests.fixtures import byte_tokenizer, chat, tiny_model


@pytest.mark.parametrize("path", ["tree", "padded"])
def test_pad_is_eos(path: str) -> None:
    tokenizer = byte_tokenizer("LLAMA3_LIKE", eos="<|eot_id|>", pad_is_eos=True)
    encoder = RewardEncoder(tokenizer)
    tree = encoder.comparison(pair(chat("q"), "yes", "a longer answer"))
    assert all(branch.ids[-1] == tokenizer.pad_token_id for branch in tree.branches)
    chosen = pad_id(tokenizer, encoder.stop_ids)
    model = with_head(tiny_model("llama", vocab=len(tokenizer)), init="normal", pad_token_id=chosen)
    rows = [[*tree.prompt_ids.tolist(), *branch.ids.tolist()] for branch in tree.branches]
    with torch.no_grad():
        ours = ScoreModel(model, path)(collate([tree])).scores_BH[:, 0]  # type: ignore[arg-type]
        alone = [model.score(model.base_model(torch.tensor([row])).last_hidden_state[0, -1]).item() for row in rows]
        assert ours.tolist() == pytest.approx(alone, abs=1e-5)
        # transformers agrees with the pad token that we save, and not with the tokenizer's own
        width = max(map(len, rows))
        for pad, agrees in ((chosen, True), (tokenizer.pad_token_id, False)):
            model.config.pad_token_id = pad
            padded = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            pooled = model(input_ids=padded, attention_mask=mask).logits[:, 0]
            assert torch.allclose(pooled, ours, atol=1e-5) is agrees
