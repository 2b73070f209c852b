"""Batch in, log-probs out: the only forward pass that training knows.

`Policy` wraps a causal LM of `transformers` (or a `peft` model around one) so that sharding, autocast and activation
checkpointing see one forward. Two implementations of the same function:

- `tree`: the flat batch through the backbone once, prompts shared, and the chunked projection. Fast.
- `padded`: ordinary right-padded rows through the model's own forward and its own logits. Slow, and the oracle.

Dropout is off in both unless the caller asks for it: with dropout, two calls on the same batch disagree and the
step-0 identities of preference losses are noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain.data.trees import to_device
from posttrain.errors import ModelError
from posttrain.models.attention import TreeLayout, probe_backend, tree_implementation
from posttrain.models.fused import fused_blocks
from posttrain.models.projection import gather_logprobs, read_head, target_logprobs
from posttrain.types import Batch, TokenLogprobs

Path = Literal["tree", "padded"]


class Policy(nn.Module):
    """A causal LM whose forward returns log-probs.

    policy(batch) -> TokenLogprobs(logprobs_N); nats, one per trained token, in the order of `batch.target_index_N`.

    Args:
        model: any causal LM of `transformers`, or a `peft` model around one.
        path: `tree` or `padded`; see `posttrain.training.preflight` for how a run chooses and proves it.
        autocast: the dtype of matrix multiplies (bf16 on hardware that gains from it), None for the weights' own.
        dropout: train with the model's and the adapter's dropout, in calls that record gradients.
        activation_checkpointing: compute each layer's activations again in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path = "tree",
        *,
        autocast: torch.dtype | None = None,
        dropout: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        self.model = model
        self.path: Path = path
        self.autocast = autocast
        self.dropout = dropout
        self._backend: str | None = None
        self._running: Path = path
        self._noisy = False
        self.eval()
        if activation_checkpointing:
            self._checkpoint_layers()

    @property
    def causal_lm(self) -> Any:
        """The model of `transformers`, with the adapter's layers in it if there is an adapter."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def train(self, mode: bool = True) -> Policy:
        """Modes are this class's business: dropout is decided per call, never by who called `train()` last."""
        return self

    def forward(
        self, batch: Batch, *, temperature: float = 1.0, entropy: bool = False, path: Path | None = None
    ) -> TokenLogprobs:
        """Log-probs of the batch's trained tokens under softmax(logits / temperature).

        Args:
            path: overrides the policy's own, for the comparison of the two.
        """
        batch = to_device(batch, self.device)
        self._running = path or self.path
        run = self._tree if self._running == "tree" else self._padded
        device_type = self.device.type
        autocast = torch.autocast(device_type, self.autocast) if self.autocast else nullcontext()
        self._noisy = self.dropout and torch.is_grad_enabled()
        with self._modes(self._noisy), autocast:
            return run(batch, temperature, entropy)

    # ------------------------------------------------------------ tree

    def _tree(self, batch: Batch, temperature: float, entropy: bool) -> TokenLogprobs:
        if self._backend is None:
            self._backend = probe_backend(self.device, self.autocast or self.dtype)
        causal_lm = self.causal_lm
        with self._tree_blocks():
            output = causal_lm.base_model(
                input_ids=batch.input_ids_T[None],
                position_ids=batch.positions_T[None],
                use_cache=False,
                tree=TreeLayout(batch, self._backend),
            )
        hidden_ND = output.last_hidden_state[0].index_select(0, batch.predictor_index_N)
        return TokenLogprobs(
            *target_logprobs(
                hidden_ND, read_head(causal_lm), batch.target_ids_N, temperature=temperature, entropy=entropy
            )
        )

    @contextmanager
    def _tree_blocks(self) -> Iterator[None]:
        """The model with the tree's attention and, where no autocast chooses dtypes, with the fused blocks."""
        fused = nullcontext() if self.autocast else fused_blocks(self.causal_lm)
        with tree_implementation(self.causal_lm), fused:
            yield

    # ------------------------------------------------------------ padded

    def _padded(self, batch: Batch, temperature: float, entropy: bool) -> TokenLogprobs:
        """Each branch as a row of its own, prompt first, padded to the right, through the whole model."""
        rows = padded_rows(batch)
        output = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        logits = output.logits[rows.row_N, rows.predictor_N]
        logprobs_N, entropy_N = gather_logprobs(logits, batch.target_ids_N, temperature)
        return TokenLogprobs(logprobs_N, entropy_N if entropy else None)

    # ------------------------------------------------------------ modes

    @contextmanager
    def _modes(self, noisy: bool) -> Iterator[None]:
        """Dropout on or off in every module; a checkpointed layer looks at its own flag, which says only that."""
        before = [(module, module.training) for module in self.model.modules()]
        for module, _ in before:
            module.training = noisy or (isinstance(module, GradientCheckpointingLayer) and torch.is_grad_enabled())
        try:
            yield
        finally:
            for module, training in before:
                module.training = training

    @contextmanager
    def _again(self, tree: bool, noisy: bool) -> Iterator[None]:
        """A layer's recomputation, as its forward was: the same blocks and the same dropout."""
        with self._tree_blocks() if tree else nullcontext(), self._modes(noisy):
            yield

    def _checkpoint_layers(self) -> None:
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            raise ModelError(
                f"activation checkpointing is not available for {type(self.causal_lm).__name__}",
                remedy="set compute.activation_checkpointing to false",
            )

        def contexts() -> tuple[Any, Any]:
            # The recomputation runs inside backward, after the forward's context has been left.
            tree, noisy = self._running == "tree", self._noisy
            return nullcontext(), self._again(tree, noisy)

        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=contexts)


class PaddedRows:
    """A batch as ordinary rows: input_ids and attention_mask [B, L], and where each trained token is predicted."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, row_N: Tensor, predictor_N: Tensor):
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.row_N = row_N
        self.predictor_N = predictor_N


def padded_rows(batch: Batch) -> PaddedRows:
    """Unfold the trees: branch b becomes row b = prompt + branch; padded slots hold id 0 under a zero mask."""
    ids = batch.input_ids_T
    parents = {node.parent for node in batch.nodes}
    leaves = [node for index, node in enumerate(batch.nodes) if index not in parents]
    rows = []
    for leaf in leaves:
        own = ids[leaf.start : leaf.end]
        above = batch.nodes[leaf.parent] if leaf.parent >= 0 else None
        rows.append(own if above is None else torch.cat([ids[above.start : above.end], own]))
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    attention_mask = (torch.arange(input_ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
    predictor_N = batch.positions_T[batch.target_index_N] - 1
    return PaddedRows(input_ids, attention_mask, batch.branch_N, predictor_N)
