"""What every model that runs on token trees shares: its paths, its modes, and one door.

`forward(batch, wants)` is the only way to the layers of policies (`logprobs.py`), reward models (`heads.py`) and value
models (`value.py`) alike. Three implementations of the same function:

- `tree`: the flat batch through the backbone once, prompts shared, and the chunked projection. Fast.
- `padded`: ordinary right-padded rows through the model's own forward and its own logits. Slow.
- `rows`: as `padded`, one row at a time; for models whose rows depend on the longest one beside them (`rope.py`), and
  the oracle.

No batch runs on a path that was not proven for this model on rows as long (`paths.py`): the first forward does it where
nobody called `prove` before, so that it holds for policies, references, critics, teachers and reward models alike.

Dropout is off in all of them unless the caller asks for it: with dropout, two calls on the same batch disagree and the
step-0 identities of preference losses are noise. Off means that every module is in eval mode, also while gradients are
recorded and layers are checkpointed: decoders such as OPT, BioGPT and BART call dropout by the layer's own flag.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from posttrain.arguments import checked_instance
from posttrain.data.trees import to_device
from posttrain.errors import ModelError
from posttrain.models.adapters.kinds import adapter_kind, virtual_tokens, waits_for_gradient
from posttrain.models.sharding.lockstep import joined, most, with_idle
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.sharding.wrap import reshard, shard_model, sharding_in
from posttrain.models.tree.attention import TreeLayout, current_tree, probe_backend, tree_implementation
from posttrain.models.tree.backbone import backbone
from posttrain.models.tree.checkpointing import checkpointed_layers, layers_of, layers_to_checkpoint
from posttrain.models.tree.every_token import count_every_token
from posttrain.models.tree.fused import fused_blocks
from posttrain.models.tree.offloading import HostActivations
from posttrain.models.tree.paths import Paths
from posttrain.models.tree.provable import ProvableModel, Route
from posttrain.models.tree.rope import forget_lengths, static_positions
from posttrain.models.tree.router import Routers, rows_of_tokens, tokens_that_count
from posttrain.models.tree.rows import PaddedRows, padded_rows, single_rows
from posttrain.models.tree.virtual import backbone_inputs
from posttrain.outputs import Routing
from posttrain.types import PLAIN, Batch, TokenTree, Wants

ROUTING = Wants(logprobs=False, routing=True)
"""Where tokens go, by a pass of the backbone alone."""


class TreeModel(ProvableModel):
    """A model of `transformers` that runs on token trees; a subclass says what becomes of the hidden states.

    Args:
        model: the model, or a `peft` model around one.
        path: the fastest path that may be taken; a slower one is where this one gives other numbers.
        autocast: the dtype of matrix multiplies (bf16 on hardware that gains from it), None for the weights' own.
        dropout: train with the model's and the adapter's dropout, in calls that record gradients.
        activation_checkpointing: compute each layer's activations again in the backward pass.
        offload_activations: keep what the backward pass needs in the machine's memory; on a CPU it is there already.
        sharding: spread the weights over ranks; each rank has to make its model of the same ones. A model that was
            loaded in shards is spread as it was loaded without this.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Route = "tree",
        *,
        autocast: torch.dtype | None = None,
        dropout: bool = False,
        activation_checkpointing: bool = False,
        offload_activations: bool = False,
        sharding: Sharding | None = None,
    ):
        checked_instance(
            "model",
            model,
            nn.Module,
            expected="a model of `transformers`, or a `peft` model around one",
            remedy="write `pt.Policy(loaded.model)`, where `loaded = pt.load(NAME)`",
        )
        super().__init__(model, autocast=autocast, dropout=dropout, sharding=sharding or sharding_in(model))
        self.virtual_tokens = virtual_tokens(model)
        """Of the adapter; they stand before every row, so that rows share no prompt and the tree does not serve."""
        self.paths = Paths("padded" if self.virtual_tokens and path == "tree" else path)
        self._backends: dict[torch.dtype, str] = {}
        self.routers = Routers(model)
        self._layers = layers_to_checkpoint(model) if activation_checkpointing else ()
        moves = offload_activations and self.device.type != "cpu"
        self.activations = HostActivations(model, self.device) if moves else None
        """Where they lie until the backward pass; None: where they were computed."""
        count_every_token(model)
        model.eval()  # `self.eval()` would end in `train` below, and do nothing
        if self.sharding is not None:
            shard_model(self, layers_of(model), self.sharding)

    def __call__(self, batch: Batch, wants: Wants = PLAIN, *, path: Route | None = None) -> Any:
        """`forward`, with its path decided and proven before. A proof is made of forward passes of this very module,
        and so is another model's answer where that is this one without its adapter; within a forward pass they would
        enter FSDP2's root a second time."""
        batch = to_device(batch, self.device)
        if wants.probe is None:
            path = self.path_of(batch, path)
        answer = super().__call__(batch, wants, path=path, **self._beforehand(batch, wants))
        # A reader of the parameters after it must find shards. Distributions are made of the head later on.
        if self.sharding is not None and not torch.is_grad_enabled() and wants.distributions_at is None:
            self.settle()
        return answer

    def _beforehand(self, batch: Batch, wants: Wants) -> dict[str, Any]:
        """What `forward` is given that other models have to compute."""
        return {}

    def settle(self) -> None:
        """Every parameter is its shard again, as an optimizer, a checkpoint or a copy has to see it. Until then the
        head is whole after a forward pass, for the backward pass or for distributions. Not between the two."""
        if self.sharding is not None:
            reshard(self)

    def train(self, mode: bool = True) -> Self:
        """Modes are this class's business: dropout is decided per call, never by who called `train()` last."""
        return self

    @abstractmethod
    def forward(self, batch: Batch, wants: Wants = PLAIN, *, path: Route | None = None) -> Any:
        """The only door: what `wants` asks of the batch, on a path that was proven for it.

        path: overrides the model's own, for comparisons.
        """

    @torch.no_grad()
    def routing(self, batch: Batch) -> Routing | None:
        """Where the batch's tokens go."""
        return self(batch, ROUTING).routing

    def _probed(self, batch: Batch, wants: Wants, path: Route | None) -> Any:
        return self._compared(batch, path) if wants.probe == "compared" else self._row_outputs(batch)

    @abstractmethod
    def _compared(self, batch: Batch, path: Route | None) -> tuple[Tensor, Tensor]:
        """See `compared`."""

    def waiting(self) -> frozenset[str]:
        """Parameters that get no gradient until others, which start at zero, have moved."""
        return waits_for_gradient(self.model)

    @property
    def path(self) -> Route:
        """That most rows take, as far as is known."""
        return self.paths.path

    @path.setter
    def path(self, wanted: Route) -> None:
        self.paths = Paths(wanted)

    def prove(self, trees: Sequence[TokenTree], *, gradient: bool = True) -> Route:
        """Decide on these trees which path rows like them take; see `posttrain.models.tree.paths`.

        Raises:
            ModelError: the model is not causal, and what it is used for does not allow that.
        """
        return self.paths.prove(self, trees, gradient=gradient)

    def path_of(self, batch: Batch, path: Route | None = None) -> Route:
        """The path that this batch takes, proven on it if need be; `path` overrides it, for comparisons. Rows that are
        longer than the angles of the model's rotary embedding are fixed for run one at a time on any path."""
        limit = static_positions(self.transformer.config.get_text_config())
        if limit is not None:
            forget_lengths(self.model)
            if most(int(batch.positions_T.max()), self.sharding) + self.virtual_tokens >= limit:
                return "rows"
        if path == "tree" and self.virtual_tokens:
            raise ModelError(
                "virtual tokens stand before every row, so rows share no prompt",
                found=f"path tree with {self.virtual_tokens} virtual tokens",
                remedy="use the padded path",
            )
        return path or self.paths.of(self, batch)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Calls inside are compared with one another, so that they must be equal: no dropout, whatever was asked."""
        asked, self.dropout = self.dropout, False
        try:
            yield
        finally:
            self.dropout = asked

    @contextmanager
    def _running_on(self, path: Route) -> Iterator[None]:
        """One forward pass: its path, its dropout, its precision, and the layers that it computes again."""
        # Without gradients it is a measurement (reference, old log-probs, held-out rows), and noise in it reads as a
        # difference.
        noisy = self.dropout and torch.is_grad_enabled()
        # Autocast keeps the narrow copy of each weight until it is left: of a sharded model that were all of it.
        autocast = (
            torch.autocast(self.device.type, self.autocast, cache_enabled=self.sharding is None)
            if self.autocast
            else nullcontext()
        )
        again = checkpointed_layers(self._layers, partial(self._again, noisy))
        away = self.activations.away() if self.activations is not None else nullcontext()
        with self._modes(noisy), again, autocast, away:
            yield

    def _tree_hidden(self, batch: Batch) -> Tensor:
        """The backbone's last hidden states of the flat batch, [T, D]."""
        layout = TreeLayout(batch, self.backend or self._fastest_backend())
        self.calls = layout.calls
        with self._tree_blocks(layout):
            output = backbone(self.transformer)(
                input_ids=batch.input_ids_T[None],
                # Given, not counted by the model: a branch's first token stands right after its prompt, wherever it
                # lies in T.
                position_ids=batch.positions_T[None],
                use_cache=False,
                **self.routers.asked(),
            )
        self.routers.keep(output, lambda: rows_of_tokens(batch))
        return output.last_hidden_state[0]

    def _fastest_backend(self) -> str:
        dtype = self.autocast or self.dtype
        if dtype not in self._backends:
            self._backends[dtype] = probe_backend(self.device, dtype)
        return self._backends[dtype]

    def _predictor_states(self, batch: Batch, chosen: Route) -> Tensor:
        """The backbone's last hidden states where each trained token is predicted, [N, D]."""
        if chosen == "tree":
            return self._tree_hidden(batch).index_select(0, batch.predictor_index_N)
        return self._by_rows(batch, chosen, lambda rows, states: states[rows.row_N, rows.predictor_N])

    def _by_rows(self, batch: Batch, chosen: Route, pick: Callable[[PaddedRows, Tensor], Tensor]) -> Tensor:
        """What `pick` takes of the backbone's last hidden states: of all rows at once, or of one at a time."""
        if chosen == "padded":
            return pick(*self._backbone_rows(batch, chosen))
        single = single_rows(batch)
        parts: dict[bool, list[Tensor]] = {True: [], False: []}
        for row, counts in with_idle(single, single[:1], self.sharding):
            parts[counts].append(pick(*self._backbone_rows(row, chosen)))
        return joined(parts[True], parts[False])

    def _backbone_rows(self, batch: Batch, chosen: Route) -> tuple[PaddedRows, Tensor]:
        """The batch as rows, and the backbone's last hidden states of them, [B, L, D]."""
        if chosen == "rows":
            forget_lengths(self.model)
        rows = padded_rows(batch)
        inputs = backbone_inputs(self.model, rows.input_ids, rows.attention_mask)
        output = backbone(self.transformer)(**inputs, use_cache=False, **self.routers.asked())
        self.routers.keep(output, lambda: self._weights_of(rows))
        return rows, output.last_hidden_state

    def _row_outputs(self, batch: Batch) -> Tensor:
        """See `row_outputs`; here the hidden states."""
        with self._running_on("rows"):
            states = self._backbone_rows(batch, "rows")[1][0]
        return states[-len(batch.input_ids_T) :]  # a prompt's virtual tokens come first

    def _weights_of(self, rows: PaddedRows) -> Tensor:
        """Of padded rows: padding counts for nothing; a prompt's virtual tokens pass through the routers, too."""
        embedded = self.virtual_tokens if adapter_kind(self.model) != "prefix" else 0
        return tokens_that_count(rows.attention_mask, embedded)

    @contextmanager
    def _tree_blocks(self, layout: TreeLayout) -> Iterator[None]:
        """The model with the tree's attention and, where no autocast chooses dtypes, with the fused blocks."""
        # The fused parts choose their dtypes themselves; under autocast they would round elsewhere than the model does.
        fused = nullcontext() if self.autocast or self.unfused else fused_blocks(self.transformer)
        with tree_implementation(self.transformer, layout), fused:
            yield

    # ------------------------------------------------------------ modes

    @contextmanager
    def _modes(self, noisy: bool) -> Iterator[None]:
        """Dropout on or off in every module.

        The flag is all that dropout, layer drop and a router's jitter look at. The checkpointing of `transformers`
        looks at it too, for something else, and is off: it is called here (`checkpointing.py`), or not at all.
        """
        before = [(module, module.training) for module in self.model.modules()]
        asking = [module for module, _ in before if getattr(module, "gradient_checkpointing", False) is True]
        for module, _ in before:
            module.training = noisy
        for module in asking:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for module, training in before:
                module.training = training
            for module in asking:
                module.gradient_checkpointing = True  # type: ignore[assignment]

    def _again(self, noisy: bool) -> AbstractContextManager[None]:
        """For a layer's recomputation, asked for while its forward begins: the tree of that forward, since by the time
        of the backward pass its context was left."""
        return self._recomputed(current_tree(), noisy)

    @contextmanager
    def _recomputed(self, tree: TreeLayout | None, noisy: bool) -> Iterator[None]:
        """A layer's recomputation, as its forward was: the same blocks and the same dropout."""
        with self._tree_blocks(tree) if tree is not None else nullcontext(), self._modes(noisy):
            yield


def read_values(head: nn.Module, states_ND: Tensor) -> Tensor:
    """What a scalar head says of states, [N], in fp32 or wider: bf16 has three digits, too few for an advantage."""
    weight = next(head.parameters())
    with torch.autocast(states_ND.device.type, enabled=False):
        values_N = head(states_ND.to(weight.dtype))[:, 0]
    return values_N if values_N.dtype == torch.float64 else values_N.float()
